//! Presets: settings that go together, under one name.

use super::{Layer, Preset};

impl Preset {
    /// The preset's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Habit => "habit",
            Self::Refuse => "refuse",
            Self::Paper => "paper",
        }
    }

    /// The preset's settings, in the form of a settings file with comments.
    pub fn text(self) -> &'static str {
        match self {
            Self::Habit => include_str!("../../assets/presets/habit.toml"),
            Self::Refuse => include_str!("../../assets/presets/refuse.toml"),
            Self::Paper => include_str!("../../assets/presets/paper.toml"),
        }
    }

    /// The preset's settings as a layer.
    pub fn layer(self) -> Layer {
        Layer::from_toml(self.text(), &format!("the preset {}", self.name())).expect("a built-in file")
    }
}
