//! Tables whose rows are read by index: embeddings. A table that exceeds a binding is split into pieces.

use super::{Arenas, Param};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::gather::{self, Reading, Rows};

/// A table `(N, width)`.
#[derive(Clone)]
pub struct Table {
    /// Its rows, in order.
    pub pieces: Vec<Piece>,
    /// Elements of a row.
    pub width: usize,
}

/// Some rows of a table.
#[derive(Clone)]
pub struct Piece {
    /// `(count, width)`
    pub rows: Param,
    /// Index of the first row in the whole table.
    pub first: usize,
    /// Number of rows.
    pub count: usize,
}

impl Table {
    /// Records out `(rows, width)` = or += the rows that `index` names, as `reading` says.
    pub fn forward(
        &self,
        rec: &mut Recorder,
        values: &Arenas,
        index: &Tensor,
        out: &Tensor,
        reading: Reading,
    ) -> Result<()> {
        for Piece { rows, first, count } in &self.pieces {
            let data = rows.in_arenas(values);
            gather::forward(rec, index, Rows { data: &data, first: *first, count: *count }, out, reading)?;
        }
        Ok(())
    }

    /// Whether the table is trained.
    pub fn is_trained(&self) -> bool {
        self.pieces.iter().any(|piece| matches!(piece.rows, Param::Trained { .. }))
    }

    /// If the table is trained, records its gradient: adds scale × the rows of dout. `list` and `targets`
    /// come from [`gather::lists`].
    pub fn backward(
        &self,
        rec: &mut Recorder,
        gradients: &Arenas,
        (list, targets): (&Tensor, usize),
        dout: &Tensor,
        scale: f32,
    ) -> Result<()> {
        for Piece { rows, first, count } in &self.pieces {
            let Some(data) = rows.gradient(gradients) else { continue };
            let dtable = Rows { data: &data, first: *first, count: *count };
            gather::backward(rec, list, dout, dtable, targets, (self.width, scale))?;
        }
        Ok(())
    }
}
