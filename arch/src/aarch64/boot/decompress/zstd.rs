//! Reads what zstd compressed (RFC 8878): one frame.

use super::{Decompress, Method, Source, WINDOW_LIMIT, cut_off};
use crate::boot::{BootFile, KernelError};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use std::io::Read;

/// What comes out.
pub(super) struct Unzstd<'a, 'b, F: BootFile>(StreamingDecoder<Source<'a, 'b, F>, FrameDecoder>);

impl<'a, 'b, F: BootFile> Unzstd<'a, 'b, F> {
    pub(super) fn new(source: Source<'a, 'b, F>) -> Result<Self, KernelError> {
        let decoder = StreamingDecoder::new_with_max_window_size(source, WINDOW_LIMIT);
        Ok(Self(decoder.map_err(|error| Method::Zstd.damaged(error.to_string()))?))
    }
}

impl<F: BootFile> Decompress for Unzstd<'_, '_, F> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, KernelError> {
        let length = match self.0.read(out) {
            Ok(length) => length,
            Err(_) if self.0.get_ref().get_ref().ended => return Err(cut_off(Method::Zstd)),
            Err(error) => return Err(Method::Zstd.damaged(error.to_string())),
        };
        if length == 0 {
            let (told, found) =
                (self.0.decoder.get_checksum_from_data(), self.0.decoder.get_calculated_checksum());
            if told.is_some() && told != found {
                let reason = "what comes out is not what was compressed: copy the file again";
                return Err(Method::Zstd.damaged(reason));
            }
        }
        Ok(length)
    }
}
