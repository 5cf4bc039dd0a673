//! The head of a safetensors file: what its tensors are called, and where they are
//! (<https://github.com/huggingface/safetensors#format>).

use safetensors::tensor::{Metadata, SafeTensorError};

use super::FileBytes;

/// The description of the tensors of a safetensors file, and where their bytes begin.
pub(super) fn safetensors_head(file: FileBytes) -> std::result::Result<(usize, Metadata), SafeTensorError> {
    /// The most bytes of a description, as in the format's own reader.
    const MOST: usize = 100_000_000;
    let unread = |_| SafeTensorError::HeaderTooSmall;
    let length = file.start(8).map_err(unread)?;
    let length = length.first_chunk().ok_or(SafeTensorError::HeaderTooSmall)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok().filter(|length| *length <= MOST);
    let start = 8 + length.ok_or(SafeTensorError::HeaderTooLarge)?;
    if start > file.len() {
        return Err(SafeTensorError::InvalidHeaderLength);
    }
    let head = file.start(start).map_err(unread)?;
    let text = std::str::from_utf8(&head[8..]).map_err(SafeTensorError::InvalidHeader)?;
    let metadata: Metadata =
        serde_json::from_str(text).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    match start + metadata.data_len() == file.len() {
        true => Ok((start, metadata)),
        false => Err(SafeTensorError::MetadataIncompleteBuffer),
    }
}
