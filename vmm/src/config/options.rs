//! The one definition of a setting.
//!
//! `options!` declares a configuration struct. From it come the JSON form (serde), the command line's
//! `key=value` form ([`super::key_value`]), the help text and the reference page ([`Options::FIELDS`]), the
//! range checks ([`Options::check_ranges`]), and in tests the schema that the OpenAPI document shows, for which the
//! type of a field has a `#[cfg_attr(test, derive(schemars::JsonSchema))]`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// One key of an option, for reading and for documentation.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The key on the command line.
    pub key: &'static str,
    /// Where it is in the JSON form; a dotted path when nested.
    pub path: &'static str,
    /// The form of its value, such as `<size>`.
    pub hint: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// The least and the greatest value, both allowed.
    pub range: Option<(u64, u64)>,
    /// What it is if not given, if that can be written down.
    pub default: Option<fn() -> String>,
    /// A word without a key is this key's value.
    pub bare: bool,
}

/// A configuration struct made by `options!`.
pub trait Options: Default + Serialize + serde::de::DeserializeOwned {
    /// The keys.
    const FIELDS: &'static [Field];
    /// What the option is for.
    const DOC: &'static str;

    /// Checks every number against its range.
    ///
    /// # Errors
    /// Names the key, the value and the range.
    fn check_ranges(&self) -> Result<(), super::key_value::Error>;

    /// Reads the command line's form, and checks the ranges.
    ///
    /// # Errors
    /// Names the key and the value, and what would be right.
    fn parse(text: &str) -> Result<Self, super::key_value::Error> {
        let options: Self = super::key_value::from_str(text, Self::FIELDS)?;
        options.check_ranges()?;
        Ok(options)
    }
}

/// Declares a configuration struct. A field reads
/// `["key"] name: Type = default`, or `["key", 1..=8]` with a range, or `["key" bare]` for the field that a word
/// without a key sets, or `[nested FIELDS]` for a struct whose keys stand beside the others on the command line.
macro_rules! options {
    (
        $(#[doc = $doc:literal])*
        pub struct $name:ident {
            $(
                $(#[doc = $field_doc:literal])*
                [$($spec:tt)*] $field:ident : $type:ty = $default:expr
            ),* $(,)?
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $( $(#[doc = $field_doc])* pub $field: $type, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $crate::config::options::Options for $name {
            const DOC: &'static str = concat!($($doc),*);

            const FIELDS: &'static [$crate::config::options::Field] =
                $crate::config::options::concat_fields::<
                    { 0 $( + $crate::config::options::options!(@count [$($spec)*]) )* },
                >(&[
                    $( $crate::config::options::options!(
                        @fields [$($spec)*] $name $field $type, concat!($($field_doc),*)
                    ), )*
                ]).as_slice();

            fn check_ranges(&self) -> Result<(), $crate::config::key_value::Error> {
                $( $crate::config::options::options!(@check [$($spec)*] self.$field); )*
                Ok(())
            }
        }

        #[cfg(test)]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let defaults = serde_json::to_value(Self::default()).expect("an option has a JSON form");
                let fields = vec![
                    $( $crate::config::schema::FieldSchema {
                        name: stringify!($field),
                        schema: generator.subschema_for::<$type>(),
                        doc: concat!($($field_doc),*),
                        range: $crate::config::options::options!(@json_range [$($spec)*]),
                    }, )*
                ];
                $crate::config::schema::object(concat!($($doc),*), &defaults, fields)
            }
        }
    };

    (@count [nested $fields:expr]) => { $fields.len() };
    (@count [$($spec:tt)*]) => { 1 };

    (@fields [nested $fields:expr] $name:ident $field:ident $type:ty, $doc:expr) => { $fields };
    (@fields [$key:literal $(, $low:literal ..= $high:literal)?] $name:ident $field:ident $type:ty, $doc:expr) => {
        &[$crate::config::options::Field {
            key: $key,
            path: stringify!($field),
            hint: <$type as $crate::config::options::Setting>::HINT,
            doc: $doc,
            range: $crate::config::options::options!(@range $($low, $high)?),
            default: Some(|| $crate::config::options::Setting::show(&$name::default().$field)),
            bare: false,
        }]
    };
    (@fields [$key:literal bare] $name:ident $field:ident $type:ty, $doc:expr) => {
        &[$crate::config::options::Field {
            key: $key,
            path: stringify!($field),
            hint: <$type as $crate::config::options::Setting>::HINT,
            doc: $doc,
            range: None,
            default: Some(|| $crate::config::options::Setting::show(&$name::default().$field)),
            bare: true,
        }]
    };
    (@json_range [$key:literal, $low:literal ..= $high:literal]) => { Some(($low, $high)) };
    (@json_range [$($spec:tt)*]) => { None };
    (@range $low:literal, $high:literal) => { Some(($low, $high)) };
    (@range) => { None };

    (@check [$key:literal, $low:literal ..= $high:literal] $value:expr) => {
        $crate::config::options::check_range($key, &$value, $low, $high)?;
    };
    (@check [$($spec:tt)*] $value:expr) => {};
}
pub(crate) use options;

/// The keys of a part that has an option of its own.
pub(crate) const NO_KEYS: &[Field] = &[];

/// Joins the key tables of a struct's fields.
pub(crate) const fn concat_fields<const N: usize>(tables: &[&'static [Field]]) -> [Field; N] {
    let blank = Field { key: "", path: "", hint: "", doc: "", range: None, default: None, bare: false };
    let mut all = [blank; N];
    let (mut table, mut next) = (0, 0);
    while table < tables.len() {
        let mut i = 0;
        while i < tables[table].len() {
            all[next] = tables[table][i];
            next += 1;
            i += 1;
        }
        table += 1;
    }
    all
}

pub(crate) fn check_range<T: Setting>(
    key: &str,
    value: &T,
    low: u64,
    high: u64,
) -> Result<(), super::key_value::Error> {
    match value.number() {
        Some(number) if number < low || number > high => Err(super::key_value::Error {
            key: Some(key.to_owned()),
            message: format!("{number} is out of range: it can be {low} to {high}"),
        }),
        _ => Ok(()),
    }
}

/// A type of setting: how its values are written.
pub trait Setting {
    /// The form, for help texts.
    const HINT: &'static str;

    /// A value, for help texts; empty if it stands for "not given".
    fn show(&self) -> String;

    /// A value as a number, for range checks.
    fn number(&self) -> Option<u64> {
        None
    }
}

macro_rules! number_settings {
    ($($type:ty),*) => {
        $(impl Setting for $type {
            const HINT: &'static str = "<number>";
            fn show(&self) -> String {
                self.to_string()
            }
            fn number(&self) -> Option<u64> {
                u64::try_from(*self).ok()
            }
        })*
    };
}
number_settings!(u8, u16, u32, u64, usize);

impl Setting for bool {
    const HINT: &'static str = "on|off";
    fn show(&self) -> String {
        if *self { "on" } else { "off" }.into()
    }
}

impl Setting for String {
    const HINT: &'static str = "<text>";
    fn show(&self) -> String {
        self.clone()
    }
}

impl Setting for PathBuf {
    const HINT: &'static str = "<path>";
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl<T: Setting> Setting for Option<T> {
    const HINT: &'static str = T::HINT;
    fn show(&self) -> String {
        self.as_ref().map(T::show).unwrap_or_default()
    }
    fn number(&self) -> Option<u64> {
        self.as_ref().and_then(T::number)
    }
}

impl<T: Setting> Setting for Vec<T> {
    const HINT: &'static str = "<list>";
    fn show(&self) -> String {
        if self.is_empty() {
            return String::new();
        }
        format!("[{}]", self.iter().map(T::show).collect::<Vec<_>>().join(","))
    }
}

/// A number of bytes. Written as a number, or with a suffix `K`, `M`, `G` or `T` (powers of 1024).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

#[cfg(test)]
impl schemars::JsonSchema for ByteSize {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A number of bytes; as text, it can have a suffix K, M, G or T (powers of 1024).",
            "anyOf": [
                {"type": "integer", "format": "uint64", "minimum": 0},
                {"type": "string", "pattern": "^[0-9]+([KkMmGgTt]|[KMGT]iB)?$"},
            ],
        })
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffixes = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        let suffix = suffixes.iter().find(|(shift, _)| self.0 != 0 && self.0.is_multiple_of(1 << shift));
        match suffix {
            Some((shift, suffix)) => write!(f, "{}{suffix}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl std::str::FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is not a size; write a number of bytes, or one with K, M, G or T");
        let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, suffix) = text.split_at(at);
        let shift = match suffix {
            "" => 0,
            "K" | "k" | "KiB" => 10,
            "M" | "m" | "MiB" => 20,
            "G" | "g" | "GiB" => 30,
            "T" | "t" | "TiB" => 40,
            _ => return Err(bad()),
        };
        let number: u64 = digits.parse().map_err(|_| bad())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| format!("\"{text}\" is more than 16 EiB"))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size in bytes, such as 1073741824 or \"1G\"")
            }

            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(value))
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<ByteSize, E> {
                value.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl Setting for ByteSize {
    const HINT: &'static str = "<size>";
    fn show(&self) -> String {
        self.to_string()
    }
    fn number(&self) -> Option<u64> {
        Some(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    options! {
        /// A sample.
        pub struct Sample {
            /// How many.
            ["count", 1..=8] count: u32 = 2,
            /// How large.
            ["size"] size: ByteSize = ByteSize(4096),
            /// Where.
            ["path" bare] path: Option<PathBuf> = None,
            /// Limits.
            [nested Inner::FIELDS] inner: Inner = Inner::default(),
        }
    }

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
    #[serde(default)]
    pub struct Inner {
        depth: u32,
    }

    impl Inner {
        const FIELDS: &'static [Field] = &[Field {
            key: "depth",
            path: "inner.depth",
            hint: "<number>",
            doc: "",
            range: None,
            default: None,
            bare: false,
        }];
    }

    #[test]
    fn one_definition_gives_text_json_help_and_ranges() {
        let sample = Sample::parse("size=2M,/a/b,depth=3").unwrap();
        let json = serde_json::json!({"count": 2, "size": 2 << 20, "path": "/a/b", "inner": {"depth": 3}});
        assert_eq!(serde_json::to_value(&sample).unwrap(), json);
        assert_eq!(serde_json::from_value::<Sample>(json).unwrap(), sample);
        let keys = Sample::FIELDS.iter().map(|field| field.key).collect::<Vec<_>>();
        assert_eq!(keys, ["count", "size", "path", "depth"]);
        assert_eq!(Sample::FIELDS[1].default.unwrap()(), "4K");
        let error = Sample::parse("count=9").unwrap_err();
        assert_eq!(error.to_string(), "count: 9 is out of range: it can be 1 to 8");
        assert!(serde_json::from_str::<Sample>(r#"{"colour":1}"#).is_err());
    }

    #[test]
    fn sizes_read_back_as_they_are_shown() {
        for (text, bytes) in [("0", 0), ("512", 512), ("1K", 1024), ("3G", 3 << 30), ("1536M", 1536 << 20)] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.0, size.to_string()), (bytes, text.to_owned()));
        }
        for bad in ["", "G", "1.5G", "-1", "1X", "99999999999T"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }
}
