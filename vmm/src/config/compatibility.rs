//! What clients of cloud-hypervisor send that says nothing: fields of its interface that are not part of this one, with the
//! values that stand for "not wanted". Clients whose code is generated from its schema fill them in.
//!
//! Such a field is left out before a body is read; with any other value it is refused there, as one that is not supported. That stays
//! right when a field becomes known: left out means the same.

use serde_json::{Map, Value};

/// Leaves out of a machine's configuration what says nothing.
pub fn adapt_machine(tree: &mut Value) {
    adapt_part("", tree);
    let Value::Object(machine) = tree else { return };
    for (part, value) in machine.iter_mut() {
        adapt_each(part, value);
        if part == "memory"
            && let Some(zones) = value.get_mut("zones")
        {
            adapt_each("zones", zones);
        }
    }
}

/// Leaves out of one part of a configuration, such as `disks`, what says nothing.
pub fn adapt_part(part: &str, tree: &mut Value) {
    let Value::Object(fields) = tree else { return };
    for (of, field, nothing) in lines(SAY_NOTHING) {
        if of == part {
            remove_if(fields, field, nothing);
        }
    }
    for (of, theirs, ours) in lines(OTHER_NAMES) {
        if of == part
            && fields.get(ours).is_none_or(Value::is_null)
            && let Some(value) = fields.remove(theirs)
        {
            fields.insert(ours.into(), value);
        }
    }
}

/// Whether a field that is unknown here is one of cloud-hypervisor's.
pub fn is_theirs(field: &str) -> bool {
    lines(SAY_NOTHING).any(|(_, theirs, _)| theirs == field)
}

/// Whether a key of the command line that is unknown here is one of cloud-hypervisor's, with a value that says nothing.
pub fn key_says_nothing(key: &str, value: &str) -> bool {
    let value = match value {
        "off" => "false",
        "on" => "true",
        other => other,
    };
    lines(SAY_NOTHING).any(|(_, theirs, nothing)| {
        // Of the features, a JSON object, nothing is said by a list without any.
        let mut words = nothing.split('|').filter(|word| *word != NO_AMX);
        theirs == key && (value.is_empty() || words.any(|word| word.eq_ignore_ascii_case(value)))
    })
}

fn adapt_each(part: &str, value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| adapt_part(part, item)),
        one => adapt_part(part, one),
    }
}

fn remove_if(fields: &mut Map<String, Value>, field: &str, nothing: &str) {
    let Some(value) = fields.get(field) else { return };
    let says_nothing = match value {
        Value::Bool(value) => nothing == if *value { "true" } else { "false" },
        Value::Number(value) => {
            nothing.parse().ok().is_some_and(|nothing: u64| value.as_u64() == Some(nothing))
        }
        Value::String(text) => nothing.split('|').any(|word| word == text),
        Value::Array(items) => nothing == "[]" && items.is_empty(),
        Value::Object(features) => {
            nothing == NO_AMX && features.iter().all(|(name, value)| name == "amx" && *value == false)
        }
        Value::Null => true,
    };
    if says_nothing {
        fields.remove(field);
    }
}

/// Stands for the JSON object by which the feature is left out.
const NO_AMX: &str = "amx";

/// Parts, their fields, and what of them says nothing, in lines. (One text, since each process would have a table of many to itself.)
const SAY_NOTHING: &str = "\
.rate_limit_groups=[]
.disks=[]
.net=[]
.fs=[]
.generic_vhost_user=[]
.pmem=[]
.devices=[]
.user_devices=[]
.vdpa=[]
.numa=[]
.iommu=false
.watchdog=false
.pvpanic=false
.pci_segments=[]
.gdb=false
.sgx_epc=[]
.preserved_fds=[]
.tpm=null
.landlock_enable=false
.landlock_rules=[]
cpus.affinity=[]
cpus.kvm_hyperv=false
cpus.features=amx
cpus.core_scheduling=Off
memory.hotplug_size=0
memory.hotplugged_size=0
memory.hotplug_method=Acpi
memory.reserve=false
memory.zones=[]
zones.hotplug_size=0
zones.hotplugged_size=0
zones.reserve=false
payload.firmware=
payload.igvm=
payload.host_data=
platform.iommu_segments=[]
platform.iommu_address_width=48
platform.iommu_address_width_bits=64
platform.chassis_asset_tag=
platform.oem_strings=[]
platform.tdx=false
platform.sev_snp=false
platform.iommufd=false
platform.vfio_p2p_dma=true
disks.iommu=false
disks.vhost_user=false
disks.vhost_socket=
disks.backing_files=false
disks.sparse=true
disks.image_type=Raw|Unknown
disks.lock_granularity=ByteRange|Full
disks.disable_io_uring=false
disks.disable_aio=false
disks.queue_affinity=[]
disks.poll_queue=true
net.tap=
net.iommu=false
net.vhost_user=false
net.vhost_socket=
net.vhost_mode=Client
pmem.iommu=false
vsock.iommu=false
balloon.iommu=false
balloon.pci_segment=0
rng.iommu=false
rtc.iommu=false
rng.pci_segment=0
serial.iommu=false
console.iommu=false
console.pci_segment=0
numa.cpus=[]
numa.distances=[]
numa.memory_zones=[]
numa.pci_segments=[]
numa.device_id=
";

/// Parts, a field's name in newer releases of cloud-hypervisor, and here, in lines.
const OTHER_NAMES: &str = "\
platform.system_serial_number=serial_number
platform.system_uuid=uuid
platform.system_manufacturer=manufacturer
platform.system_product_name=product
platform.system_version=version
platform.system_family=family
platform.system_sku_number=sku
";

/// What the lines of a table say: part, field, value.
fn lines(table: &'static str) -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    table.lines().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        let (part, field) = name.split_once('.')?;
        Some((part, field, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VmConfig;
    use serde_json::json;

    #[test]
    fn what_generated_clients_fill_in_is_left_out() {
        let mut tree = json!({
            "payload": {"kernel": "k", "firmware": ""},
            "cpus": {"boot_vcpus": 1, "max_vcpus": 2, "kvm_hyperv": false, "features": {"amx": false}},
            "memory": {"size": 1073741824, "hotplug_method": "Acpi", "reserve": false, "zones": []},
            "disks": [{"path": "d", "iommu": false, "vhost_user": false, "num_queues": 1, "image_type": "Raw"}],
            "net": [{"tap": "t", "iommu": false, "vhost_mode": "Client"}],
            "rng": {"src": "/dev/urandom", "iommu": false},
            "iommu": false,
            "watchdog": false,
            "fs": [],
            "pmem": [{"file": "p", "iommu": false}],
            "rtc": {"iommu": false},
            "platform": {"tdx": false, "system_serial_number": "S", "iommu_address_width_bits": 64},
        });
        let mut without_features = tree.clone();
        without_features["cpus"]["features"] = json!({});
        adapt_machine(&mut tree);
        adapt_machine(&mut without_features);
        assert_eq!(without_features, tree);
        let config: VmConfig = serde_json::from_value(tree).unwrap();
        assert_eq!(config.platform.serial_number.as_deref(), Some("S"));
        assert_eq!((config.disks.len(), config.net.len(), config.cpus.limit()), (1, 1, 2));
    }

    #[test]
    fn what_says_something_stays_and_is_refused_where_it_is_unknown() {
        let mut tree = json!({"disks": [{"path": "d", "iommu": true}]});
        adapt_machine(&mut tree);
        assert!(serde_json::from_value::<VmConfig>(tree).unwrap_err().to_string().contains("iommu"));
    }
}
