//! A mapped file, whose memory is made stable by an I/O engine.

use super::Flush;
use crate::engine::{EngineError, EngineFile, EngineKind, Engines, ThreadStart};
use crate::image::{Layout, PageCache, RawStream, Stream};
use std::fs::File;
use std::sync::Arc;

/// The file behind persistent memory. What a guest writes to the memory is in the host's page cache, and a sync of the file
/// makes it stable.
pub struct MappedFile {
    file: Arc<File>,
    engines: Engines,
    page_cache: Arc<PageCache>,
}

impl MappedFile {
    /// A file that is mapped shared. `start` is called first by each thread that the engine starts, where the host has no
    /// io_uring.
    ///
    /// # Errors
    /// When no engine can be had.
    pub fn new(file: Arc<File>, start: Option<ThreadStart>) -> Result<Self, EngineError> {
        let engines = Engines::new(EngineKind::Auto, false, start)?;
        Ok(Self { file, engines, page_cache: Arc::default() })
    }
}

impl Flush for MappedFile {
    fn stream(&self) -> Result<Box<dyn Stream>, EngineError> {
        let file = EngineFile { file: Arc::clone(&self.file) as _, direct: false };
        let engine = self.engines.engine(vec![file], 1)?;
        Ok(Box::new(RawStream::new(engine, 1, Layout::default(), Some(Arc::clone(&self.page_cache)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::TempFile;
    use crate::virtio_pmem::Pmem;
    use machine::bus::Range;
    use virtio::testing::{Driver, Layout};

    #[test]
    fn a_real_file_is_synced_by_whatever_engine_there_is() {
        let file = TempFile::new(2 << 20);
        let open = File::options().read(true).write(true).open(file.path()).unwrap();
        let flush = MappedFile::new(Arc::new(open), None).unwrap();
        let region = Range { start: 1 << 40, size: 2 << 20 };
        let mut driver = Driver::new(Box::new(Pmem::new(region, Some(Arc::new(flush)))), Layout::SPLIT);
        for _ in 0..3 {
            assert_eq!(driver.call(0, &[&[0; 4]], &[4]).data, [0; 4]);
        }
        driver.stop();
    }
}
