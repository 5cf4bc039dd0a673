//! The macro that declares a section of the settings once, for the TOML file, the flags and the program.

/// Declares a section: a struct of resolved values (`Option` only where absence has a meaning), a struct of
/// flags (every value optional; a clap group whose help is the fields' docs), and the functions that merge
/// them.
///
/// A field is its help text, its clap arguments in parentheses, and `name: type = default;`. Fields after
/// `optional:` have no default. A test compares "[default: ...]" in the help with the defaults here.
macro_rules! section {
    (
        #[doc = $about:tt]
        $run:ident, $flags:ident;
        $( $(#[doc = $doc:tt])* ($($arg:tt)*) $name:ident: $ty:ty = $default:expr; )*
        optional:
        $( $(#[doc = $odoc:tt])* ($($oarg:tt)*) $oname:ident: $oty:ty; )*
    ) => {
        #[doc = $about]
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $run {
            $( $(#[doc = $doc])* pub $name: $ty, )*
            $(
                $(#[doc = $odoc])*
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $oname: Option<$oty>,
            )*
        }

        impl Default for $run {
            fn default() -> Self {
                Self { $($name: $default,)* $($oname: None,)* }
            }
        }

        #[doc = $about]
        #[doc = "\n\nThe values given by one source: every key may be absent."]
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "clap", derive(clap::Args))]
        #[serde(default, deny_unknown_fields)]
        pub struct $flags {
            $(
                $(#[doc = $doc])*
                #[cfg_attr(feature = "clap", arg($($arg)*, allow_negative_numbers = true))]
                pub $name: Option<$ty>,
            )*
            $(
                $(#[doc = $odoc])*
                #[cfg_attr(feature = "clap", arg($($oarg)*, allow_negative_numbers = true))]
                pub $oname: Option<$oty>,
            )*
        }

        impl $flags {
            /// The section's keys.
            pub const KEYS: &[&str] = &[$(stringify!($name),)* $(stringify!($oname),)*];

            pub(super) fn over(self, below: Self) -> Self {
                Self { $($name: self.$name.or(below.$name),)* $($oname: self.$oname.or(below.$oname),)* }
            }

            pub(super) fn or_defaults(self) -> $run {
                let Self { $($name,)* $($oname,)* } = self;
                $run { $($name: $name.unwrap_or_else(|| $default),)* $($oname,)* }
            }

            pub(super) fn given(&self) -> Vec<&'static str> {
                let present = [$(self.$name.is_some(),)* $(self.$oname.is_some(),)*];
                Self::KEYS.iter().zip(present).filter_map(|(key, present)| present.then_some(*key)).collect()
            }
        }
    };
}
