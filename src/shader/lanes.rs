//! Another order of a workgroup's invocations, for tests. A software adapter runs them in one fixed order, so
//! a missing barrier may stay unnoticed there, and show on a GPU.

/// Which part of a workgroup's work an invocation does. A software adapter runs 4 or 8 neighbours as one
/// vector, so the other orders take neighbours apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Lanes {
    /// The part of its own index.
    #[default]
    InOrder,
    /// Eight neighbours do parts an eighth of the workgroup apart, and the next eight those after them.
    Strided,
    /// The same from the last part to the first.
    Reversed,
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
        let strided = format!("given_lane % 8u * (u32({size}) / 8u) + given_lane / 8u");
        let lane = match self {
            Self::Reversed => format!("u32({size}) - 1u - ({strided})"),
            _ => strided,
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
            let other = Lanes::Reversed.of(text.clone());
            if text.contains("var<workgroup>") && !text.contains("subgroup_") {
                assert!(other.contains("- 1u - (given_lane % 8u"), "{variant}");
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
        let strided = of(Lanes::Strided);
        let place = "given_lane % 8u * (u32((4) * (N)) / 8u) + given_lane / 8u";
        assert!(strided.contains(&format!("given_lane: u32) {{\n    let lane = {place}; f();")), "{strided}");
        let reversed = of(Lanes::Reversed);
        assert!(
            reversed.contains(&format!("let lane = u32((4) * (N)) - 1u - ({place}); f();")),
            "{reversed}"
        );
    }

    /// Every invocation has a part, and no two have the same.
    #[test]
    fn each_part_is_done_once() {
        for size in [64, 128, 256] {
            let mut parts: Vec<u32> = (0..size).map(|given| given % 8 * (size / 8) + given / 8).collect();
            parts.sort_unstable();
            assert!(parts.into_iter().eq(0..size));
        }
        for variant in permutations().unwrap() {
            let module = crate::shader::parse(&variant, Lanes::InOrder).unwrap();
            let size: u32 = module.entry_points[0].workgroup_size.iter().product();
            let shares = source(&variant).unwrap().contains("var<workgroup>");
            assert!(!shares || size.is_multiple_of(8), "{variant}: {size} invocations");
        }
    }
}
