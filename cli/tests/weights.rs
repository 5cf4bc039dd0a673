//! Weights files that tests change.

use std::fs;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::room::Room;

pub const WEIGHTS: &str = "model/model.safetensors";

/// The tensors of a safetensors file: name, type, shape, bytes.
pub type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

pub fn tensors(room: &Room, name: &str) -> Tensors {
    let bytes = fs::read(room.path(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let one = |(name, view): (&str, TensorView)| {
        (name.to_string(), view.dtype(), view.shape().to_vec(), view.data().to_vec())
    };
    file.iter().map(one).collect()
}

pub fn write(room: &Room, name: &str, all: &Tensors) {
    let views = all.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    room.write(name, safetensors::serialize(views, None).unwrap());
}
