//! Another order of a workgroup's invocations, for tests. A software adapter runs them in one fixed order, so
//! a missing barrier may stay unnoticed there, and show on a GPU.

/// Which part of a workgroup's work an invocation does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Lanes {
    /// The part of its own index.
    #[default]
    InOrder,
    /// The first does the last one's part, and so on.
    Mirrored,
    /// The first does the part of the one in the middle, and so on.
    Rotated,
}

impl Lanes {
    /// The WGSL `text` of a kernel in this order. Kernels whose lanes are those of a subgroup stay as they
    /// are: a subgroup has no order.
    pub fn of(self, text: String) -> String {
        const INDEX: &str = "@builtin(local_invocation_index) ";
        let between = |start: &str, end: &str| {
            let from = text.find(start)? + start.len();
            Some(&text[from..from + text[from..].find(end)?])
        };
        if self == Self::InOrder || text.contains("subgroup_") {
            return text;
        }
        let (Some(size), Some(body)) = (between("@workgroup_size(", ")"), between("fn main(", "{")) else {
            return text;
        };
        let size = size.split(',').map(|side| format!("({})", side.trim())).collect::<Vec<_>>().join(" * ");
        let lane = match self {
            Self::InOrder | Self::Mirrored => format!("u32({size}) - 1u - given_lane"),
            Self::Rotated => format!("(given_lane + u32({size}) / 2u) % u32({size})"),
        };
        let renamed = body.replace(&format!("{INDEX}lane:"), &format!("{INDEX}given_lane:"));
        if renamed == body {
            return text;
        }
        let (whole, renamed) =
            (format!("fn main({body}{{"), format!("fn main({renamed}{{\n    let lane = {lane};"));
        text.replacen(&whole, &renamed, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shader::{permutations, source};

    #[test]
    fn each_kernel_with_workgroup_memory_can_be_put_in_another_order() {
        for variant in permutations().unwrap() {
            let text = source(&variant).unwrap();
            let other = Lanes::Mirrored.of(text.clone());
            if text.contains("var<workgroup>") && !text.contains("subgroup_") {
                assert!(other.contains("- 1u - given_lane;"), "{variant}");
            }
            naga::front::wgsl::parse_str(&other).unwrap_or_else(|e| panic!("{variant}: {e}"));
            assert_eq!(Lanes::InOrder.of(text.clone()), text);
        }
    }

    #[test]
    fn the_parts_are_those_of_other_invocations() {
        let text =
            "@compute @workgroup_size(4, N)\nfn main(@builtin(local_invocation_index) lane: u32) { f(); }";
        let of = |lanes: Lanes| lanes.of(text.into());
        let mirrored = of(Lanes::Mirrored);
        assert!(
            mirrored.contains("given_lane: u32) {\n    let lane = u32((4) * (N)) - 1u - given_lane; f();")
        );
        let rotated = of(Lanes::Rotated);
        assert!(rotated.contains("let lane = (given_lane + u32((4) * (N)) / 2u) % u32((4) * (N)); f();"));
    }
}
