//! Routes of a machine that fails on demand.

use super::*;

/// A machine that remembers what is asked of it, and fails the next calls.
#[derive(Default)]
struct FakeVm {
    state: Mutex<Fake>,
}

#[derive(Default)]
struct Fake {
    fails_to_listen: u32,
    fails_to_set: u32,
    routes: Vec<u32>,
    listens: Vec<u32>,
}

impl FakeVm {
    fn state(&self) -> MutexGuard<'_, Fake> {
        self.state.lock().unwrap()
    }
}

fn fails(left: &mut u32) -> io::Result<()> {
    if *left == 0 {
        return Ok(());
    }
    *left -= 1;
    Err(io::Error::from_raw_os_error(libc::ENOMEM))
}

impl Interrupts for FakeVm {
    fn set_routes(&self, routes: &KvmIrqRouting) -> io::Result<()> {
        let mut state = self.state();
        fails(&mut state.fails_to_set)?;
        state.routes = routes.as_slice().iter().map(|entry| entry.gsi).collect();
        Ok(())
    }

    fn listen(&self, _: &EventFd, gsi: u32) -> io::Result<()> {
        let mut state = self.state();
        fails(&mut state.fails_to_listen)?;
        state.listens.push(gsi);
        Ok(())
    }

    fn stop_listening(&self, _: &EventFd, gsi: u32) {
        self.state().listens.retain(|known| *known != gsi);
    }
}

fn message(data: u32) -> MsiMessage {
    MsiMessage { address: 0xfee0_0000, data, requester: 8 }
}

/// A driver that masks and unmasks a vector again has it routed with the same message.
#[test]
fn an_interrupt_that_could_not_be_connected_is_when_it_is_tried_again() {
    let vm = Arc::new(FakeVm::default());
    let routes = Arc::new(Routes::new(vm.clone(), 24).unwrap());
    let source = routes.allocate().unwrap();
    vm.state().fails_to_listen = 2;
    for _ in 0..2 {
        assert!(source.route(Some(message(1))).is_err());
        source.fire();
        assert_eq!(source.event().unwrap().read().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
    source.route(Some(message(1))).unwrap();
    assert_eq!(vm.state().listens, [24]);
    assert_eq!(vm.state().routes, [24]);
    source.fire();
    assert_eq!(source.event().unwrap().read().unwrap(), 1);

    vm.state().fails_to_set = 1;
    source.route(Some(message(1))).unwrap();
    assert_eq!(vm.state().fails_to_set, 1, "what is so already asks nothing of KVM");
    assert!(source.route(Some(message(2))).is_err());
    source.route(Some(message(2))).unwrap();
}

#[test]
fn a_source_that_was_never_connected_leaves_no_route() {
    let vm = Arc::new(FakeVm::default());
    let routes = Arc::new(Routes::new(vm.clone(), 24).unwrap());
    let source = routes.allocate().unwrap();
    vm.state().fails_to_listen = 1;
    assert!(source.route(Some(message(1))).is_err());
    drop(source);
    assert!(vm.state().routes.is_empty() && vm.state().listens.is_empty());
    assert_eq!(routes.allocate().unwrap().gsi, 24, "its number is free");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn extended_destinations_move_to_where_kvm_looks_for_them() {
    // CPU 0x1234: bits 0 to 7 in address bits 12 to 19, bits 8 to 14 in 5 to 11.
    assert_eq!(kvm_address(0xfee3_4000 | 0x12 << 5), 0x0000_1200_fee3_4000);
    assert_eq!(kvm_address(0xfee0_100c), 0xfee0_100c, "redirection hint and mode stay");
    assert_eq!(kvm_address(0x0000_0100_fee0_1000), 0x0000_0100_fee0_1000);
}
