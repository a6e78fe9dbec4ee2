use super::*;
use hypervisor::Hypervisor;
use hypervisor::sim::Sim;
use machine::effect::Effect;
use std::path::{Path, PathBuf};

/// A file that is gone at the end of the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("vivarium-flash-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

const ROOM: u64 = 1 << 20;
const BLOCK: u64 = 256 << 10;

fn flash(content: Content) -> (Arc<dyn Vm>, BusHandle, Flash) {
    let vm = Sim::new().create_vm().unwrap();
    let (mmio, mut flash) = (BusHandle::default(), Flash::default());
    flash.put("tests", 0, content, &*vm, &mmio).unwrap();
    (vm, mmio, flash)
}

#[test]
fn the_guest_has_the_memory_while_reads_give_the_content() {
    let (vm, mmio, mut flash) = flash(Content::volatile().unwrap());
    let bus = mmio.snapshot();
    let direct = |flash: &Flash| flash.inspect()["tests"]["direct"].clone();
    assert_eq!(direct(&flash), true);
    for (command, expected) in [(0x90, false), (0x70, false), (0xff, true)] {
        if let Some(Some(Effect::DirectMemory(number))) = bus.write(0, &[command, 0, command, 0]) {
            flash.follow(&*vm, number).unwrap();
        }
        assert_eq!(direct(&flash), expected, "{command:#x}");
    }
    // Twice the same, and a device that there is not.
    flash.follow(&*vm, 0).unwrap();
    flash.follow(&*vm, 9).unwrap();
    bus.write(0, &[0x98]);
    flash.follow(&*vm, 0).unwrap();
    assert!(vm.unmap_memory(FIRST_SLOT).is_err(), "it was taken away");
    flash.reset(&*vm).unwrap();
    assert_eq!(direct(&flash), true);
    vm.unmap_memory(FIRST_SLOT).unwrap();
}

#[test]
fn firmware_ends_in_erased_flash_and_cannot_be_changed() {
    let file = Scratch::new("code", &[0x55; 70_001]);
    let open = || std::fs::File::open(file.path()).unwrap();
    let (_vm, mmio, flash) = flash(Content::code(&open(), ROOM).unwrap());
    assert_eq!(flash.ranges(), [Range { start: 0, size: BLOCK }]);
    let bus = mmio.snapshot();
    let read = |address| {
        let mut data = [0; 2];
        bus.read(address, &mut data);
        data
    };
    assert_eq!([0, 70_000, BLOCK - 2].map(read), [[0x55; 2], [0x55, 0xff], [0xff; 2]]);
    bus.write(0, &[0x40]);
    bus.write(0, &[0x00]);
    bus.write(0, &[0xff]);
    assert_eq!(read(0), [0x55; 2]);
    let error = Content::code(&open(), 70_000).err().unwrap().to_string();
    assert_eq!(error, "has 70001 bytes, and firmware can have at most 70000: give another one");
}

#[test]
fn variables_are_in_their_file_which_nobody_else_has() {
    let file = Scratch::new("variables", &vec![0; 2 * BLOCK as usize]);
    let (_vm, mmio, flash) = flash(Content::variables(file.path(), ROOM).unwrap());
    assert_eq!(flash.ranges(), [Range { start: 0, size: 2 * BLOCK }]);
    let error = Content::variables(file.path(), ROOM).err().unwrap().to_string();
    assert!(error.starts_with("another machine or process has it"), "{error}");
    let bus = mmio.snapshot();
    for (address, value) in [(BLOCK, 0x20), (BLOCK, 0xd0), (BLOCK + 4, 0x40), (BLOCK + 4, 0x12)] {
        bus.write(address, &[value]);
    }
    let kept = std::fs::read(file.path()).unwrap();
    assert_eq!(kept[BLOCK as usize - 1..BLOCK as usize + 6], [0, 0xff, 0xff, 0xff, 0xff, 0x12, 0xff]);
    drop((bus, mmio, flash));
    Content::variables(file.path(), ROOM).unwrap();
}

#[test]
fn files_that_are_no_store_for_variables_are_refused_with_a_remedy() {
    let refused = |path: &Path| Content::variables(path, ROOM).err().unwrap().to_string();
    assert!(refused(Path::new("/nowhere/vars.fd")).starts_with("there is no such file; copy"));
    assert_eq!(refused(&std::env::temp_dir()), "is a directory; give a file");
    for (size, expected) in
        [(0, "is empty; copy"), (BLOCK + 1, "has 262145 bytes"), (ROOM + BLOCK, "has 1310720")]
    {
        let file = Scratch::new(&size.to_string(), &vec![0; size as usize]);
        let error = refused(file.path());
        assert!(error.starts_with(expected) && error.contains("AAVMF_VARS.fd"), "{error}");
    }
}
