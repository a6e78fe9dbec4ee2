//! Looking at live state: the tree that the API, the metrics and the tests read.
//!
//! [`inspect!`](crate::inspect!) writes [`Inspect`] of what has fields. Where the tree is a list, it is written by hand.

pub use serde_json::{Value, json};

use serde_json::Map;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Something whose live fields and counters can be looked at without stopping it.
pub trait Inspect {
    /// The fields, as a tree of objects. Addresses are strings in hexadecimal, sizes are in bytes,
    /// counters only grow.
    fn inspect(&self) -> Value;
}

impl<T: Inspect + ?Sized> Inspect for Box<T> {
    fn inspect(&self) -> Value {
        (**self).inspect()
    }
}

/// The part of a tree at `path`: names between slashes, and numbers in lists. A PCI function of segment 0 may be named
/// without its segment (`pci/00:03.0`). The empty path is the whole tree.
pub fn inspect_at<'a>(tree: &'a Value, path: &str) -> Option<&'a Value> {
    let mut names = path.split('/').filter(|name| !name.is_empty());
    names.try_fold(tree, |tree, name| match tree {
        Value::Object(fields) => fields.get(name).or_else(|| fields.get(&format!("0000:{name}"))),
        Value::Array(list) => list.get(name.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Implements [`Inspect`] for a type by naming what to show: fields of the struct, or what is said after a name. What comes after
/// `hex` is shown in hexadecimal, the rest by its [`Field`] implementation. `..` adds the fields of another tree.
///
/// ```
/// use machine::inspect::{Inspect, json};
/// struct Window { base: u64, length: u64, used: bool }
/// machine::inspect!(Window { hex base, length, used });
/// let window = Window { base: 0xe000_0000, length: 4096, used: true };
/// assert_eq!(window.inspect(), json!({ "base": "0xe0000000", "length": 4096, "used": true }));
///
/// struct Bridge { window: Window, secondary: u8 }
/// machine::inspect!(Bridge, this => { secondary, hex end: this.window.base + this.window.length, ..this.window });
/// let tree = Bridge { window, secondary: 1 }.inspect();
/// assert_eq!((&tree["secondary"], &tree["end"], &tree["used"]), (&json!(1), &json!("0xe0001000"), &json!(true)));
/// ```
#[macro_export]
macro_rules! inspect {
    ($type:ty { $($fields:tt)* }) => { $crate::inspect!($type, this => { $($fields)* }); };
    ($type:ty, $this:ident => { $($fields:tt)* }) => {
        impl $crate::inspect::Inspect for $type {
            fn inspect(&self) -> $crate::inspect::Value {
                let $this = self;
                let mut tree = $crate::inspect::Tree::default();
                $crate::inspect!(@add tree $this $($fields)*);
                tree.into()
            }
        }
    };
    (@add $tree:ident $this:ident) => {};
    (@add $tree:ident $this:ident hex $name:ident : $value:expr $(, $($rest:tt)*)?) => {
        $tree.add(stringify!($name), $crate::inspect::hex(&$value));
        $crate::inspect!(@add $tree $this $($($rest)*)?);
    };
    (@add $tree:ident $this:ident hex $field:ident $(, $($rest:tt)*)?) => {
        $tree.add(stringify!($field), $crate::inspect::hex(&$this.$field));
        $crate::inspect!(@add $tree $this $($($rest)*)?);
    };
    (@add $tree:ident $this:ident .. $value:expr $(, $($rest:tt)*)?) => {
        $tree.add_all($crate::inspect::Field::field(&$value));
        $crate::inspect!(@add $tree $this $($($rest)*)?);
    };
    (@add $tree:ident $this:ident $name:ident : $value:expr $(, $($rest:tt)*)?) => {
        $tree.add(stringify!($name), $crate::inspect::Field::field(&$value));
        $crate::inspect!(@add $tree $this $($($rest)*)?);
    };
    (@add $tree:ident $this:ident $field:ident $(, $($rest:tt)*)?) => {
        $tree.add(stringify!($field), $crate::inspect::Field::field(&$this.$field));
        $crate::inspect!(@add $tree $this $($($rest)*)?);
    };
}

/// A tree that [`inspect!`](crate::inspect!) makes.
#[derive(Debug, Default)]
pub struct Tree(Map<String, Value>);

impl Tree {
    /// Adds a field.
    pub fn add(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// Adds the fields of an object.
    pub fn add_all(&mut self, object: Value) {
        if let Value::Object(fields) = object {
            self.0.extend(fields);
        }
    }
}

impl From<Tree> for Value {
    fn from(tree: Tree) -> Self {
        Self::Object(tree.0)
    }
}

/// A value that [`inspect!`](crate::inspect!) can show.
pub trait Field {
    /// The value.
    fn field(&self) -> Value;
}

macro_rules! plain_fields {
    ($($type:ty),*) => { $(
        impl Field for $type {
            fn field(&self) -> Value {
                Value::from(self.clone())
            }
        }
    )* };
}
plain_fields!(bool, u8, u16, u32, u64, usize, i32, i64, String, &'static str, Value);

macro_rules! atomic_fields {
    ($($type:ty),*) => { $(
        impl Field for $type {
            fn field(&self) -> Value {
                self.load(Ordering::Relaxed).into()
            }
        }
    )* };
}
atomic_fields!(AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64);

impl<T: Field> Field for Option<T> {
    fn field(&self) -> Value {
        self.as_ref().map_or(Value::Null, Field::field)
    }
}

impl Field for PathBuf {
    fn field(&self) -> Value {
        self.display().to_string().into()
    }
}

impl<T: Field> Field for Vec<T> {
    fn field(&self) -> Value {
        self.iter().map(Field::field).collect()
    }
}

impl<T: Field + ?Sized> Field for Arc<T> {
    fn field(&self) -> Value {
        (**self).field()
    }
}

impl<T: Inspect + ?Sized> Field for T {
    fn field(&self) -> Value {
        self.inspect()
    }
}

/// A number as an address: a string in hexadecimal.
pub fn hex(number: &impl Field) -> Value {
    match number.field() {
        Value::Number(number) => format!("{:#x}", number.as_u64().unwrap_or_default()).into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_through_objects_and_lists() {
        let tree = json!({
            "pci": { "0000:00:03.0": { "queue": { "1": { "size": 256 } } }, "0001:00:03.0": "other" },
            "cpu": [ { "exits": 7 } ],
        });
        assert_eq!(inspect_at(&tree, ""), Some(&tree));
        assert_eq!(inspect_at(&tree, "pci/00:03.0/queue/1/size"), Some(&json!(256)));
        assert_eq!(inspect_at(&tree, "/pci/0001:00:03.0/"), Some(&json!("other")));
        assert_eq!(inspect_at(&tree, "cpu/0/exits"), Some(&json!(7)));
        for missing in ["cpu/1", "cpu/x", "pci/00:04.0", "cpu/0/exits/more"] {
            assert_eq!(inspect_at(&tree, missing), None, "{missing}");
        }
    }
}
