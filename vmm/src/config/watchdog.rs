//! `--watchdog`.

use super::device::device_options;
use super::options::Setting;
use super::several::Repeated;
use serde::{Deserialize, Serialize};
use serde_json::Value;

device_options! {
    /// A watchdog timer, with `--watchdog` alone one that restarts the machine.
    pub struct WatchdogConfig is "watchdog" first |watchdog| watchdog.model.first_name().into(), told by action {
        /// What is done when the guest does not reload it in time. An event tells of it in any case.
        ["action"] action: WatchdogAction = WatchdogAction::Reset,
        /// Which device it is: Intel's 6300ESB (Linux: module `i6300esb`), cloud-hypervisor's virtio-watchdog, or both, so that any guest finds the one it has a driver for. Below a port, and added while the machine runs, `any` is Intel's.
        ["model"] model: WatchdogModel = WatchdogModel::Any,
    }
}

impl Repeated for WatchdogConfig {
    fn of_switch(on: bool) -> Option<Vec<Self>> {
        Some(if on { usual() } else { Vec::new() })
    }

    /// As clients of cloud-hypervisor know it: whether there is one.
    fn short_form(all: &[Self]) -> Option<Value> {
        (all.is_empty() || all == usual()).then_some((!all.is_empty()).into())
    }
}

/// Of both models, with the names that they get, so that any guest finds the one it has a driver for.
fn usual() -> Vec<WatchdogConfig> {
    let mut both = vec![WatchdogConfig::default()];
    part(&mut both);
    for watchdog in &mut both {
        watchdog.id = Some(watchdog.model.first_name().to_owned());
    }
    both
}

impl WatchdogConfig {
    /// Makes it one device.
    pub fn choose_model(&mut self) {
        if self.model == WatchdogModel::Any {
            self.model = WatchdogModel::I6300esb;
        }
    }
}

/// Has each that is both models be two.
pub(super) fn part(watchdogs: &mut Vec<WatchdogConfig>) {
    for mut watchdog in std::mem::take(watchdogs) {
        let both = watchdog.model == WatchdogModel::Any && watchdog.bus.is_none();
        watchdog.choose_model();
        let other = both.then(|| WatchdogConfig {
            action: watchdog.action,
            model: WatchdogModel::Virtio,
            id: watchdog.id.as_ref().map(|id| format!("{id}_virtio")),
            pci_segment: watchdog.pci_segment,
            ..WatchdogConfig::default()
        });
        watchdogs.push(watchdog);
        watchdogs.extend(other);
    }
}

/// What is done when a guest does not reload its watchdog in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WatchdogAction {
    /// Restart the machine.
    #[default]
    Reset,
    /// End the machine.
    Poweroff,
    /// Pause the machine.
    Pause,
    /// Nothing.
    None,
    /// Raise a non-maskable interrupt, so that the guest tells where it hangs or makes a dump of itself.
    #[serde(rename = "inject-nmi", alias = "inject_nmi")]
    InjectNmi,
}

impl WatchdogAction {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Poweroff => "poweroff",
            Self::Pause => "pause",
            Self::None => "none",
            Self::InjectNmi => "inject-nmi",
        }
    }
}

impl Setting for WatchdogAction {
    const HINT: &'static str = "reset|poweroff|pause|none|inject-nmi";
    fn show(&self) -> String {
        self.name().into()
    }
}

/// Which watchdog device there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum WatchdogModel {
    /// Both.
    #[default]
    Any,
    /// Intel's 6300ESB.
    I6300esb,
    /// The one of virtio.
    Virtio,
}

impl WatchdogModel {
    /// What the first of this model is called.
    fn first_name(self) -> &'static str {
        match self {
            Self::Any | Self::I6300esb => "__watchdog",
            Self::Virtio => "__watchdog_virtio",
        }
    }
}

impl Setting for WatchdogModel {
    const HINT: &'static str = "any|i6300esb|virtio";
    fn show(&self) -> String {
        match self {
            Self::Any => "any",
            Self::I6300esb => "i6300esb",
            Self::Virtio => "virtio",
        }
        .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VmConfig;
    use serde_json::json;

    fn named(json: &Value) -> VmConfig {
        let mut config: VmConfig = serde_json::from_value(json!({ "watchdog": json })).unwrap();
        config.name_devices();
        config
    }

    #[test]
    fn a_watchdog_of_any_model_is_two_devices_and_clients_see_that_there_is_one() {
        let ids = |config: &VmConfig| {
            config.watchdog.iter().map(|one| (one.id.clone().unwrap(), one.model)).collect::<Vec<_>>()
        };
        let both = [
            ("__watchdog".to_owned(), WatchdogModel::I6300esb),
            ("__watchdog_virtio".to_owned(), WatchdogModel::Virtio),
        ];
        assert_eq!(ids(&named(&json!(true))), both);
        assert_eq!(serde_json::to_value(named(&json!(true))).unwrap()["watchdog"], true);
        assert_eq!(serde_json::to_value(VmConfig::default()).unwrap()["watchdog"], false);
        assert_eq!(named(&json!({})), named(&json!(true)));
        for told in [json!(false), json!(null), json!([])] {
            assert!(named(&told).watchdog.is_empty());
        }
        let two = named(&json!([{"action": "none"}, {"model": "virtio", "id": "w"}]));
        assert_eq!(two.watchdog.len(), 3);
        two.validate().unwrap();
        let again: VmConfig = serde_json::from_value(serde_json::to_value(&two).unwrap()).unwrap();
        assert_eq!(again, two);
        let config = named(&json!({"bus": "rp0", "id": "w"}));
        assert_eq!(ids(&config), [("w".to_owned(), WatchdogModel::I6300esb)]);
    }
}
