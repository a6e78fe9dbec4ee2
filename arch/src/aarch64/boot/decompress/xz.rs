//! Reads what xz compressed (The .xz File Format 1.2.1): one stream.

use super::{Decompress, Method, Source, WINDOW_LIMIT, cut_off};
use crate::boot::{BootFile, KernelError};
use std::io::BufRead;
use xz4rust::{XzDecoder, XzError, XzNextBlockResult};

/// What comes out.
pub(super) struct Unxz<'a, 'b, F> {
    source: Source<'a, 'b, F>,
    decoder: Box<XzDecoder<'static>>,
    finished: bool,
}

impl<'a, 'b, F: BootFile> Unxz<'a, 'b, F> {
    pub(super) fn new(source: Source<'a, 'b, F>) -> Self {
        let limit = usize::try_from(WINDOW_LIMIT).unwrap_or(usize::MAX);
        Self { source, decoder: XzDecoder::in_heap_with_alloc_dict_size(0, limit), finished: false }
    }
}

impl<F: BootFile> Decompress for Unxz<'_, '_, F> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, KernelError> {
        while !self.finished {
            let input = self.source.fill_buf().map_err(KernelError::Read)?;
            let at_end = input.is_empty();
            let (consumed, produced) = match self.decoder.decode(input, out) {
                Ok(XzNextBlockResult::NeedMoreData(consumed, produced)) => (consumed, produced),
                Ok(XzNextBlockResult::EndOfStream(consumed, produced)) => {
                    self.finished = true;
                    (consumed, produced)
                }
                Err(XzError::NeedsLargerInputBuffer) if at_end => return Err(cut_off(Method::Xz)),
                Err(error) => return Err(Method::Xz.damaged(error.to_string())),
            };
            self.source.consume(consumed);
            if produced > 0 {
                return Ok(produced);
            }
        }
        Ok(0)
    }
}
