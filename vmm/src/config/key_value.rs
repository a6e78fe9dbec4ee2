//! The `key=value,key=value` form of an option, as a serde data format.
//!
//! A text is first read into a tree, in which the command line's short keys (`boot`) are replaced by the
//! places the configuration has for them (`boot_vcpus`, or `rate_limiter_config.bandwidth.size`); the tree is
//! then deserialized like JSON would be. Forms of a value:
//!
//! | type | form |
//! |---|---|
//! | text | as it stands; in double quotes when it has a comma or a bracket |
//! | switch | `on`, `off`, `true`, `false` |
//! | number | decimal, or hexadecimal after `0x` |
//! | list | `[a,b,c]`; of numbers also `[0-3,8]` |
//! | record | its fields in order, between `@` or `:`, as in `0@[1,2]` or `1:4:1:1` |

use super::compatibility;
use super::options::{ByteSize, Field, Setting};
use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::path::PathBuf;

/// Why an option's text was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The key at fault, as the user wrote it.
    pub key: Option<String>,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Error {
    fn new(message: impl Into<String>) -> Self {
        Self { key: None, message: message.into() }
    }

    /// Names the value, where the message of a type from elsewhere does not.
    fn about(mut self, text: &str) -> Self {
        if self.key.is_none() && !self.message.contains(['"', ':']) {
            self.message = format!("\"{text}\": {}", self.message);
        }
        self
    }

    fn at(mut self, key: &str) -> Self {
        self.key.get_or_insert_with(|| key.to_owned());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(f, "{key}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        let message = message.to_string();
        // This is all that the standard library says.
        let remedy = if message.contains("IP address") { "; write one like 192.168.0.1" } else { "" };
        Self::new(format!("{message}{remedy}"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        // Where JSON spells a variant in capitals and the command line does not, only the latter helps here.
        let capital = |name: &str| name.starts_with(|c: char| c.is_ascii_uppercase());
        let plain = expected.iter().copied().filter(|name| !capital(name) && !ALIASES.contains(name));
        let plain: Vec<_> = plain.collect();
        Self::new(format!("\"{variant}\" is not one of {}", plain.join(", ")))
    }
}

/// Other spellings of variants (`serde(alias)`), which are taken but not told.
const ALIASES: [&str; 2] = ["wr", "inject_nmi"];

/// Reads an option's text into its configuration type. `fields` are the keys it knows.
///
/// # Errors
/// When a key is unknown, given twice or malformed.
pub fn from_str<T: de::DeserializeOwned>(text: &str, fields: &[Field]) -> Result<T, Error> {
    T::deserialize(Value::Map(tree(text, fields)?))
}

#[derive(Clone, Debug)]
enum Value {
    Text { key: String, text: String },
    Map(Vec<(String, Value)>),
}

fn tree(text: &str, fields: &[Field]) -> Result<Vec<(String, Value)>, Error> {
    let mut root = Vec::new();
    for part in split(text, ',')? {
        let part = part.trim();
        if part.is_empty() {
            continue;
        }
        let (key, value, field) = match part.split_once('=') {
            Some((key, value)) if !key.contains(['"', '[']) => {
                (key, value, fields.iter().find(|field| field.key == key))
            }
            // A word on its own is the value of the field that is marked for it.
            _ => match fields.iter().find(|field| field.bare) {
                Some(field) => (field.key, part, Some(field)),
                None if fields.iter().any(|field| field.key == part) => {
                    return Err(Error::new(format!("needs a value: {part}=...")).at(part));
                }
                None => {
                    let message =
                        format!("\"{part}\" is not of the form key=value; the keys are {}", keys(fields));
                    return Err(Error::new(message));
                }
            },
        };
        let mut text = unquote(value)?.to_owned();
        let Some(field) = field else {
            if compatibility::key_says_nothing(key, &text) {
                continue;
            }
            return Err(unknown(key, fields));
        };
        // As if it was left out, where that means that there is none.
        let none = field.default.is_some_and(|default| default().is_empty());
        if text.is_empty() && none && field.hint != PathBuf::HINT {
            continue;
        }
        if field.hint == ByteSize::HINT {
            // As many bytes, for whoever takes them as a number.
            let size: ByteSize = text.parse().map_err(|error| Error::new(error).at(key))?;
            text = size.0.to_string();
        }
        if let (Some((low, high)), Ok(number)) = (field.range, text.parse::<i128>())
            && !(i128::from(low)..=i128::from(high)).contains(&number)
        {
            return Err(Error::new(format!("{text} is out of range: it can be {low} to {high}")).at(key));
        }
        let value = Value::Text { key: key.to_owned(), text };
        place(&mut root, field.path, value)
            .map_err(|()| Error::new("is given twice; give it once").at(key))?;
    }
    Ok(root)
}

fn unknown(key: &str, fields: &[Field]) -> Error {
    let nearest = fields
        .iter()
        .map(|field| (distance(key, field.key), field.key))
        .filter(|(distance, _)| *distance <= 2)
        .min();
    Error::new(match nearest {
        _ if compatibility::is_theirs(key) => format!("{key} is not supported yet; leave it out"),
        Some((_, near)) => format!("unknown key \"{key}\"; did you mean \"{near}\"?"),
        None => format!("unknown key \"{key}\"; the keys are {}", keys(fields)),
    })
}

fn keys(fields: &[Field]) -> String {
    fields.iter().map(|field| field.key).collect::<Vec<_>>().join(", ")
}

/// The number of single-character edits between two words.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Puts `value` at a dotted path, making maps on the way.
fn place(map: &mut Vec<(String, Value)>, path: &str, value: Value) -> Result<(), ()> {
    let (head, rest) = path.split_once('.').map_or((path, None), |(head, rest)| (head, Some(rest)));
    let present = map.iter_mut().find(|(name, _)| name == head);
    match (present, rest) {
        (None, None) => map.push((head.to_owned(), value)),
        (None, Some(rest)) => {
            let mut inner = Vec::new();
            place(&mut inner, rest, value)?;
            map.push((head.to_owned(), Value::Map(inner)));
        }
        (Some((_, Value::Map(inner))), Some(rest)) => place(inner, rest, value)?,
        (Some(_), _) => return Err(()),
    }
    Ok(())
}

/// Splits at `separator` outside of quotes and brackets.
pub(super) fn split(text: &str, separator: char) -> Result<Vec<&str>, Error> {
    let (mut parts, mut start, mut depth, mut quoted) = (Vec::new(), 0, 0usize, false);
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '[' if !quoted => depth += 1,
            ']' if !quoted => {
                depth = depth
                    .checked_sub(1)
                    .ok_or_else(|| Error::new(format!("']' without '[' in \"{text}\"")))?;
            }
            c if c == separator && !quoted && depth == 0 => {
                parts.push(&text[start..at]);
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    if quoted {
        return Err(Error::new(format!("a quote is not closed in \"{text}\"")));
    }
    if depth > 0 {
        return Err(Error::new(format!("a '[' is not closed in \"{text}\"")));
    }
    parts.push(&text[start..]);
    Ok(parts)
}

fn unquote(text: &str) -> Result<&str, Error> {
    let Some(inner) = text.strip_prefix('"') else { return Ok(text) };
    inner.strip_suffix('"').ok_or_else(|| Error::new(format!("a quote is not closed in {text}")))
}

struct Text<'a>(&'a str);

impl Text<'_> {
    fn number<T: TryFrom<i128> + fmt::Display>(&self, least: &T, greatest: &T) -> Result<T, Error> {
        let digits = self.0;
        let parsed = match digits.strip_prefix("0x") {
            Some(hex) => i128::from_str_radix(hex, 16),
            None => digits.parse(),
        };
        let number = parsed.map_err(|_| {
            Error::new(format!("\"{digits}\" is not a whole number; write one like 4 or 0x10"))
        })?;
        T::try_from(number)
            .map_err(|_| Error::new(format!("{digits} is out of range: it can be {least} to {greatest}")))
    }

    fn items(&self) -> Result<Vec<String>, Error> {
        let text = self.0;
        let inner = match text.strip_prefix('[') {
            Some(rest) => rest
                .strip_suffix(']')
                .ok_or_else(|| Error::new(format!("a '[' is not closed in \"{text}\"")))?,
            None => text,
        };
        let mut items = Vec::new();
        for item in split(inner, ',')?.into_iter().map(str::trim).filter(|item| !item.is_empty()) {
            match number_range(item) {
                Some((first, last)) if last < first || last - first > 65_535 => {
                    return Err(Error::new(format!("\"{item}\" is not an ascending range of at most 65536")));
                }
                Some((first, last)) => items.extend((first..=last).map(|n| n.to_string())),
                None => items.push(unquote(item)?.to_owned()),
            }
        }
        Ok(items)
    }
}

fn number_range(item: &str) -> Option<(u64, u64)> {
    let (first, last) = item.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit(self.number(&<$type>::MIN, &<$type>::MAX)?)
        })*
    };
}

impl<'de> de::Deserializer<'de> for Text<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(self.0)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            "on" | "true" => visitor.visit_bool(true),
            "off" | "false" => visitor.visit_bool(false),
            other => Err(Error::new(format!("\"{other}\" is neither on nor off; write one of them"))),
        }
    }

    numbers! {
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64, deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Items(self.items()?.into_iter()))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let separator = if self.0.contains('@') { '@' } else { ':' };
        let parts = split(self.0, separator)?;
        if parts.len() != fields.len() {
            // A pair is written with '@', whatever the user took.
            let form = fields.join(if fields.len() == 2 { "@" } else { ":" });
            return Err(Error::new(format!("\"{}\" is not of the form {form}", self.0)));
        }
        let parts = parts.into_iter().map(str::to_owned).collect::<Vec<_>>();
        visitor.visit_seq(Items(parts.into_iter()))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(self.0.into_deserializer())
    }

    serde::forward_to_deserialize_any! {
        i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct map identifier
        ignored_any
    }
}

struct Items(std::vec::IntoIter<String>);

impl<'de> SeqAccess<'de> for Items {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.next().map(|item| seed.deserialize(Text(&item))).transpose()
    }
}

macro_rules! through_text {
    ($($method:ident),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self {
                Value::Text { key, text } => {
                    Text(&text).$method(visitor).map_err(|error| error.about(&text).at(&key))
                }
                Value::Map(map) => visitor.visit_map(Entries { map: map.into_iter(), value: None }),
            }
        })*
    };
}

impl<'de> de::Deserializer<'de> for Value {
    type Error = Error;

    through_text! {
        deserialize_any, deserialize_bool, deserialize_u8, deserialize_u16, deserialize_u32, deserialize_u64,
        deserialize_i8, deserialize_i16, deserialize_i32, deserialize_i64, deserialize_seq,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self {
            Value::Text { key, text } => {
                Text(&text).deserialize_struct(name, fields, visitor).map_err(|error| error.at(&key))
            }
            map => map.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self {
            Value::Text { key, text } => {
                Text(&text).deserialize_newtype_struct(name, visitor).map_err(|error| error.at(&key))
            }
            map => visitor.visit_newtype_struct(map),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self {
            Value::Text { key, text } => {
                Text(&text).deserialize_enum(name, variants, visitor).map_err(|error| error.at(&key))
            }
            Value::Map(_) => Err(Error::new("one value is expected here")),
        }
    }

    serde::forward_to_deserialize_any! {
        i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct map identifier
        ignored_any
    }
}

struct Entries {
    map: std::vec::IntoIter<(String, Value)>,
    value: Option<Value>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((name, value)) = self.map.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(Text(&name)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        match self.value.take() {
            Some(value) => seed.deserialize(value),
            None => Err(Error::new("a value was asked for before its key")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    struct Pin {
        vcpu: u32,
        host_cpus: Vec<u32>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        boot_vcpus: u8,
        name: Option<String>,
        shared: bool,
        pins: Vec<Pin>,
        limit: Limit,
    }

    #[derive(Debug, Deserialize)]
    enum Direction {
        #[serde(rename = "no")]
        No,
        #[serde(rename = "on")]
        On,
    }

    #[test]
    fn every_variant_is_told_also_one_with_the_letters_of_another() {
        let error = Direction::deserialize(Text("x")).unwrap_err();
        assert_eq!(error.to_string(), "\"x\" is not one of no, on");
        assert!(matches!(Direction::deserialize(Text("no")), Ok(Direction::No)));
        assert!(matches!(Direction::deserialize(Text("on")), Ok(Direction::On)));
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Limit {
        size: u64,
    }

    fn field(key: &'static str, path: &'static str) -> Field {
        Field { key, path, hint: "", doc: "", range: None, default: None, bare: false }
    }

    fn parse(text: &str) -> Result<Sample, String> {
        let fields = [
            field("boot", "boot_vcpus"),
            field("name", "name"),
            field("shared", "shared"),
            field("pins", "pins"),
            field("bw_size", "limit.size"),
        ];
        from_str(text, &fields).map_err(|error| error.to_string())
    }

    #[test]
    fn every_form_of_value_is_read() {
        let sample = parse(r#"boot=0x10,name="a,b[",shared=on,pins=[0@[1,4-6],1@[2]],bw_size=9"#).unwrap();
        let pins = vec![Pin { vcpu: 0, host_cpus: vec![1, 4, 5, 6] }, Pin { vcpu: 1, host_cpus: vec![2] }];
        let name = Some("a,b[".to_owned());
        assert_eq!(sample, Sample { boot_vcpus: 16, name, shared: true, pins, limit: Limit { size: 9 } });
        assert_eq!(parse("").unwrap(), Sample::default());
    }

    #[test]
    fn a_refusal_names_the_key_and_the_value() {
        for (text, message) in [
            ("boot=x", "boot: \"x\" is not a whole number; write one like 4 or 0x10"),
            ("boot=300", "boot: 300 is out of range: it can be 0 to 255"),
            ("shared=maybe", "shared: \"maybe\" is neither on nor off; write one of them"),
            ("boot=1,boot=2", "boot: is given twice; give it once"),
            ("bot=1", "unknown key \"bot\"; did you mean \"boot\"?"),
            ("colour=red", "unknown key \"colour\"; the keys are boot, name, shared, pins, bw_size"),
            ("boot", "boot: needs a value: boot=..."),
            ("what", "\"what\" is not of the form key=value; the keys are boot, name, shared, pins, bw_size"),
            ("name=\"a", "a quote is not closed in \"name=\"a\""),
            ("pins=[0@1", "a '[' is not closed in \"pins=[0@1\""),
            ("pins=[0]", "pins: \"0\" is not of the form vcpu@host_cpus"),
            ("pins=[0@[9-2]]", "pins: \"9-2\" is not an ascending range of at most 65536"),
        ] {
            assert_eq!(parse(text).unwrap_err(), message, "{text}");
        }
    }

    #[test]
    fn what_scripts_for_cloud_hypervisor_say_is_understood() {
        use crate::config::{CpusConfig, DiskConfig, NetConfig, Options};
        let disk = |text: &str| DiskConfig::parse(text).map_err(|error| error.to_string());
        assert_eq!(NetConfig::parse("tap=,mac=,ip=,mask=").unwrap(), NetConfig::default());
        assert_eq!(CpusConfig::parse("boot=1,kvm_hyperv=off,features=").unwrap(), CpusConfig::default());
        let plain = disk("path=a").unwrap();
        for text in ["iommu=off", "vhost_user=off", "vhost_user=false", "image_type=raw", "bus=", "serial="] {
            assert_eq!(disk(&format!("path=a,{text}")), Ok(plain.clone()), "{text}");
        }
        let features = CpusConfig::parse("features=amx").unwrap_err().to_string();
        assert_eq!(features, "features is not supported yet; leave it out");
        for (text, told) in [
            ("iommu=on", "iommu is not supported yet; leave it out"),
            ("image_type=qcow2", "image_type is not supported yet; leave it out"),
            ("num_queues=", "num_queues: \"\" is not a whole number; write one like 4 or 0x10"),
        ] {
            assert_eq!(disk(&format!("path=a,{text}")).unwrap_err(), told, "{text}");
        }
    }
}
