//! Saved state: what a device gives when the machine is saved, and takes when it is restored.
//!
//! Each device has a saved-state type of its own, apart from its live struct, that derives serde's traits
//! with `#[serde(default)]`: an unknown field is skipped, a missing one takes its default. The published
//! container around it is not this crate's business.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

/// A device's saved-state type.
pub trait SavedFields: Serialize + DeserializeOwned {
    /// What kind of device this is the state of, such as `"serial-16550"`. Never changes.
    const KIND: &'static str;
    /// Raised when a field changes its meaning. A reader refuses newer versions than its own.
    const VERSION: u32;
}

/// One device's state, self-describing.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SavedState {
    /// [`SavedFields::KIND`] of the writer.
    pub kind: String,
    /// [`SavedFields::VERSION`] of the writer.
    pub version: u32,
    /// The named fields.
    pub fields: Value,
}

/// Why a state could not be saved or taken.
#[derive(Debug, Error)]
pub enum StateError {
    /// The state is of another kind of device.
    #[error("the saved state is of a {found}, and this device is a {expected}")]
    Kind {
        /// This device's kind.
        expected: &'static str,
        /// The state's kind.
        found: String,
    },
    /// The state was written by a newer program.
    #[error(
        "the saved {kind} has version {found}, and this program reads up to {supported}: use a newer one"
    )]
    Version {
        /// The device's kind.
        kind: &'static str,
        /// The newest version this program reads.
        supported: u32,
        /// The state's version.
        found: u32,
    },
    /// A field has the wrong type.
    #[error("the saved {kind} cannot be read: {source}")]
    Fields {
        /// The device's kind.
        kind: &'static str,
        /// What was wrong.
        source: serde_json::Error,
    },
    /// A field has a value this device cannot have.
    #[error("the saved {kind} cannot be used: {reason}")]
    Value {
        /// The device's kind.
        kind: &'static str,
        /// Which field, and why.
        reason: String,
    },
}

impl SavedState {
    /// Wraps a device's fields.
    ///
    /// # Errors
    /// When the fields have no self-describing form.
    pub fn of<T: SavedFields>(fields: &T) -> Result<Self, StateError> {
        let fields =
            serde_json::to_value(fields).map_err(|source| StateError::Fields { kind: T::KIND, source })?;
        Ok(Self { kind: T::KIND.to_owned(), version: T::VERSION, fields })
    }

    /// The fields, as the type the device wants.
    ///
    /// # Errors
    /// When the state is of another kind, newer, or has a field of the wrong type.
    pub fn read<T: SavedFields>(&self) -> Result<T, StateError> {
        if self.kind != T::KIND {
            return Err(StateError::Kind { expected: T::KIND, found: self.kind.clone() });
        }
        if self.version > T::VERSION {
            return Err(StateError::Version { kind: T::KIND, supported: T::VERSION, found: self.version });
        }
        T::deserialize(&self.fields).map_err(|source| StateError::Fields { kind: T::KIND, source })
    }
}

/// Something that can be saved and restored.
pub trait Saved {
    /// The state now. The device is quiescent: no queue handler of it is running.
    ///
    /// # Errors
    /// When the state has no self-describing form.
    fn save(&self) -> Result<SavedState, StateError>;

    /// Becomes what `state` says. On an error the device is as after a reset.
    ///
    /// # Errors
    /// When the state is not one of this device.
    fn restore(&mut self, state: &SavedState) -> Result<(), StateError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
    #[serde(default)]
    struct Lamp {
        lit: bool,
        watts: u32,
    }

    impl SavedFields for Lamp {
        const KIND: &'static str = "lamp";
        const VERSION: u32 = 2;
    }

    fn saved(version: u32, fields: Value) -> SavedState {
        SavedState { kind: "lamp".into(), version, fields }
    }

    #[test]
    fn unknown_fields_are_skipped_and_missing_ones_default() {
        let state = saved(1, serde_json::json!({"lit": true, "colour": "red"}));
        assert_eq!(state.read::<Lamp>().unwrap(), Lamp { lit: true, watts: 0 });
    }

    #[test]
    fn newer_foreign_and_malformed_states_are_refused() {
        assert!(matches!(
            saved(3, serde_json::json!({})).read::<Lamp>(),
            Err(StateError::Version { found: 3, supported: 2, .. })
        ));
        let other = SavedState { kind: "door".into(), ..saved(1, serde_json::json!({})) };
        assert!(matches!(other.read::<Lamp>(), Err(StateError::Kind { .. })));
        assert!(matches!(
            saved(1, serde_json::json!({"watts": "many"})).read::<Lamp>(),
            Err(StateError::Fields { .. })
        ));
    }
}
