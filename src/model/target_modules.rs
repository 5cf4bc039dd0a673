//! The layers that get an adapter.

use serde::{Deserialize, Serialize};

/// Which linear layers get an adapter, with PEFT's meaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "TargetModulesForm", into = "TargetModulesForm")]
pub enum TargetModules {
    /// Every linear layer except the output head.
    AllLinear,
    /// The layers with one of these names.
    Names(Vec<String>),
}

/// The form of [`TargetModules`] in files: a list, or one string.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "a list of names, or \"all-linear\"")]
enum TargetModulesForm {
    Text(String),
    List(Vec<String>),
}

impl From<TargetModulesForm> for TargetModules {
    fn from(form: TargetModulesForm) -> Self {
        match form {
            TargetModulesForm::Text(text) => Self::from(text.as_str()),
            TargetModulesForm::List(names) => Self::Names(names),
        }
    }
}

impl From<TargetModules> for TargetModulesForm {
    fn from(modules: TargetModules) -> Self {
        match modules {
            TargetModules::AllLinear => Self::Text("all-linear".into()),
            TargetModules::Names(names) => Self::List(names),
        }
    }
}

impl From<&str> for TargetModules {
    /// "all-linear", or names separated by commas.
    fn from(text: &str) -> Self {
        match text {
            "all-linear" => Self::AllLinear,
            names => Self::Names(names.split(',').map(|name| name.trim().to_owned()).collect()),
        }
    }
}

impl Default for TargetModules {
    /// All linear layers: of a Llama block its seven projections.
    fn default() -> Self {
        Self::AllLinear
    }
}

impl TargetModules {
    /// Whether the layer at `path` (as in `model.layers.0.self_attn.q_proj`) gets an adapter: like PEFT, a
    /// name matches the whole path or its end after a dot.
    pub fn selects(&self, path: &str) -> bool {
        let ends_with =
            |name: &str| path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        match self {
            // The output head, by either of its names.
            Self::AllLinear => !ends_with("lm_head") && !ends_with("embed_out"),
            Self::Names(names) => names.iter().any(|name| ends_with(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_modules_match_like_peft() {
        let names = TargetModules::from("q_proj, self_attn.v_proj");
        assert!(names.selects("model.layers.0.self_attn.q_proj") && names.selects("q_proj"));
        assert!(names.selects("model.layers.3.self_attn.v_proj"));
        assert!(
            !names.selects("model.layers.0.self_attn.xq_proj")
                && !names.selects("model.layers.0.mlp.up_proj")
        );
        assert!(
            TargetModules::AllLinear.selects("model.layers.0.mlp.up_proj")
                && !TargetModules::AllLinear.selects("lm_head")
        );
    }
}
