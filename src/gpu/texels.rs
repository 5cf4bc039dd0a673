//! Textures that a software adapter's kernels read operands through. On some processors llvmpipe takes
//! several times longer for a load from a storage buffer than for one from a texture, even with the copy.
//!
//! A kernel that reads an operand so has a texture where others have a storage buffer. The operand is copied
//! right before the dispatch, unless the texture still holds it. A binding number has the same texture in all
//! kernels. Textures are made when they are first needed, and made anew where they are too small. The ledger
//! does not count them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Bytes of a texel.
const TEXEL: u64 = 16;
/// Texels in a row of a texture, which `shaders/common/texels.wgsl` knows too.
const WIDTH: u64 = 1024;
/// The most rows of a texture: 32 MiB.
const HEIGHT: u64 = 2048;
/// The fewest: 1 MiB.
const LEAST: u64 = 64;
/// Copies of several rows need rows that are a multiple of this many bytes apart (WebGPU's
/// `COPY_BYTES_PER_ROW_ALIGNMENT`).
const ALIGN: u64 = wgpu::COPY_BYTES_PER_ROW_ALIGNMENT as u64;

/// One of the textures: the number of its binding, and whether it holds words instead of floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    /// The binding number.
    pub number: u32,
    /// Whether texels are four `u32` instead of four `f32`.
    pub words: bool,
}

impl Slot {
    /// A number that no buffer has.
    pub(super) fn key(self) -> u64 {
        u64::MAX - 2 * u64::from(self.number) - u64::from(self.words)
    }
}

/// The bytes of a tensor that are copied into a texture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    start: u64,
    /// Bytes of a row.
    row: u64,
    rows: u64,
    /// Bytes from one row to the next. Of one row, only the first is used.
    stride: u64,
}

impl Copied {
    /// The most bytes of a texture.
    pub const MOST: u64 = TEXEL * WIDTH * HEIGHT;

    /// `bytes` from byte `start` on; `None` if no texture has the room, or if they start within a texel.
    pub fn run(start: u64, bytes: u64) -> Option<Self> {
        let row = bytes.next_multiple_of(TEXEL);
        let fits = start.is_multiple_of(TEXEL) && row <= Self::MOST;
        fits.then_some(Self { start, row, rows: 1, stride: 0 })
    }

    /// What to copy of `rows` rows of `row` bytes, which are `stride` bytes apart and start at byte `start`;
    /// and how many bytes apart they then are in the texture. `None` if no texture has the room, or if the
    /// rows start within a texel.
    pub fn of(start: u64, rows: u64, row: u64, stride: u64) -> Option<(Self, u64)> {
        if !start.is_multiple_of(TEXEL) || !stride.is_multiple_of(TEXEL) || rows == 0 {
            return None;
        }
        let row = row.next_multiple_of(TEXEL);
        let dense = Self::run(start, (rows - 1) * stride + row).map(|whole| (whole, stride));
        // Each row into a row of the texture, without what is between them.
        let apart = stride.is_multiple_of(ALIGN) && row <= TEXEL * WIDTH && rows <= HEIGHT;
        let apart = apart.then_some((Self { start, row, rows, stride }, TEXEL * WIDTH));
        if 2 * row < stride { apart.or(dense) } else { dense.or(apart) }
    }
}

impl Copied {
    /// Rows of the texture that it takes.
    pub(super) fn height(self) -> u64 {
        if self.rows == 1 { self.row.div_ceil(TEXEL * WIDTH) } else { self.rows }
    }
}

/// The textures of a device.
#[derive(Default)]
pub(super) struct Texels(Mutex<BTreeMap<Slot, wgpu::Texture>>);

impl Texels {
    /// The texture of a slot, with `rows` rows or more, and whether it replaces a smaller one.
    pub fn of(&self, device: &wgpu::Device, slot: Slot, rows: u64) -> (wgpu::Texture, bool) {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            device.create_texture(&wgpu::TextureDescriptor {
                label: Some("operand"),
                size: extent(WIDTH, rows.next_power_of_two().max(LEAST)),
                mip_level_count: 1,
                sample_count: 1,
                dimension: wgpu::TextureDimension::D2,
                format: match slot.words {
                    true => wgpu::TextureFormat::Rgba32Uint,
                    false => wgpu::TextureFormat::Rgba32Float,
                },
                usage: wgpu::TextureUsages::TEXTURE_BINDING | wgpu::TextureUsages::COPY_DST,
                view_formats: &[],
            })
        };
        let texture = made.entry(slot).or_insert_with(make);
        let small = u64::from(texture.height()) < rows;
        if small {
            *texture = make();
        }
        (texture.clone(), small)
    }
}

fn extent(width: u64, height: u64) -> wgpu::Extent3d {
    wgpu::Extent3d { width: width as u32, height: height as u32, depth_or_array_layers: 1 }
}

/// Records the copy of `what` from a buffer's part that starts at byte `start`.
pub(super) fn copy(
    encoder: &mut wgpu::CommandEncoder,
    (buffer, start): (&wgpu::Buffer, u64),
    what: Copied,
    texture: &wgpu::Texture,
) {
    let mut copy = |offset: u64, stride: u64, first: u64, (width, height): (u64, u64)| {
        if width == 0 || height == 0 {
            return;
        }
        let layout = wgpu::TexelCopyBufferLayout {
            offset: start + what.start + offset,
            bytes_per_row: Some(stride as u32),
            rows_per_image: None,
        };
        let target = wgpu::TexelCopyTextureInfo {
            origin: wgpu::Origin3d { x: 0, y: first as u32, z: 0 },
            ..texture.as_image_copy()
        };
        let source = wgpu::TexelCopyBufferInfo { buffer, layout };
        encoder.copy_buffer_to_texture(source, target, extent(width, height));
    };
    let texels = what.row / TEXEL;
    if what.rows == 1 {
        // A run of bytes goes on in the next row of the texture.
        let whole = texels / WIDTH;
        copy(0, TEXEL * WIDTH, 0, (WIDTH, whole));
        copy(whole * TEXEL * WIDTH, TEXEL * WIDTH, whole, (texels % WIDTH, 1));
    } else {
        copy(0, what.stride, 0, (texels, what.rows));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_copied_whole_or_apart() {
        let of = |rows, row, stride| Copied::of(32, rows, row, stride);
        let whole = |row| Copied { start: 32, row, rows: 1, stride: 0 };
        assert_eq!(of(3, 64, 64), Some((whole(192), 64)));
        assert_eq!(of(3, 60, 64), Some((whole(192), 64)), "a texel is copied whole");
        assert_eq!(of(2, 64, 144), Some((whole(208), 144)), "gaps, but rows that no copy can be made of");
        let apart = Copied { start: 32, row: 64, rows: 2, stride: 256 };
        assert_eq!(of(2, 64, 256), Some((apart, 16 << 10)), "large gaps are left out");
        assert_eq!(of(1, 64, 256), Some((Copied { rows: 1, ..apart }, 16 << 10)));
        assert_eq!(of(2, 64, 100), None, "rows that start within a texel");
        assert_eq!(Copied::of(4, 1, 64, 64), None, "a start within a texel");
        assert_eq!(of(2049, 16 << 10, 16 << 10), None, "too large");
        let narrow = Copied { start: 32, row: 16 << 10, rows: 2048, stride: 20 << 10 };
        assert_eq!(of(2048, 16 << 10, 20 << 10), Some((narrow, 16 << 10)), "too large with its gaps");
    }
}
