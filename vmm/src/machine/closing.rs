//! Letting go of what devices hold of the host.
//!
//! Closing a file may take as long as its file system likes: one of a network writes back what it has. The machine thread waits for
//! a while, so that whoever is told that a device is gone finds its files free, and no longer.

use crate::message::Work;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// What closes for a machine.
pub struct Closing {
    /// Each that closes has a clone.
    counted: Arc<()>,
    /// How long is waited.
    patience: Duration,
}

impl Default for Closing {
    /// Closing files takes no time where the file system has nothing to do for it.
    fn default() -> Self {
        Self { counted: Arc::default(), patience: Duration::from_secs(1) }
    }
}

impl Closing {
    /// Drops `what`, which is of `device`, on a thread, and waits until that is done, but not for ever, and not at all while the host
    /// has not done with an earlier one. It is work for the machine until it is.
    pub fn close(&self, what: impl Send + 'static, device: &str, work: &Work) {
        let hangs = Arc::strong_count(&self.counted) > 1;
        let (counted, work, (done, closed)) = (Arc::clone(&self.counted), work.clone(), channel::<()>());
        let close = move || {
            drop(what);
            drop((counted, work, done));
        };
        // Where the host gives no thread, it is done here.
        let Ok(thread) = std::thread::Builder::new().name("close".into()).stack_size(256 << 10).spawn(close)
        else {
            return;
        };
        let patience = if hangs { Duration::ZERO } else { self.patience };
        if closed.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(
                "device {device}: the host has not closed its files yet; look after the file system that they are on"
            );
            return;
        }
        // If it panicked, the hook has said so.
        let _ = thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender};

    /// What cannot be let go of before it is told so.
    struct Hanging(Receiver<()>, Sender<()>);

    impl Drop for Hanging {
        fn drop(&mut self) {
            let _ = self.0.recv();
            let _ = self.1.send(());
        }
    }

    #[test]
    fn what_closes_is_waited_for_and_what_hangs_is_work_until_it_has() {
        let waits = |seconds| Closing { patience: Duration::from_secs(seconds), ..Closing::default() };
        let (closing, work) = (waits(0), Work::default());
        let ((let_go, told), (gone, is_gone)) = (channel(), channel());
        closing.close(Hanging(told, gone), "hangs", &work);
        assert!(work.is_shared() && is_gone.try_recv().is_err());
        let_go.send(()).unwrap();
        is_gone.recv().unwrap();
        let (let_go, told) = channel();
        drop(let_go);
        let (gone, is_gone) = channel();
        waits(60).close(Hanging(told, gone), "closes", &Work::default());
        assert!(is_gone.try_recv().is_ok());
    }
}
