//! Runs all queues of a console device, and keeps up the talk with its driver on the control queues.

use super::control::{HEADER, Message, event};
use super::port::{PortQueues, RunningPort};
use super::state::SavedConsole;
use super::{MAX_PORTS, Port, Shared};
use machine::inspect::Inspect;
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;
use virtio::chain::Chain;
use virtio::device::{ConfigChange, Progress, QueueHandler};
use virtio::queue::Queue;

/// How many control messages a run handles at most in each direction.
const BUDGET: u32 = 64;
/// While more messages than this wait for the driver, its own are left alone. One message of the driver makes at
/// most as many as there are ports.
const MAX_MESSAGES: usize = 4 * MAX_PORTS;

pub(super) struct Handler {
    shared: Arc<Shared>,
    ports: Vec<RunningPort>,
    /// `None` for a driver without MULTIPORT.
    control: Option<PortQueues>,
    driver_ready: bool,
    /// For the driver.
    messages: VecDeque<Message>,
    chain: Chain,
    config_changed: ConfigChange,
    unknown_messages: u64,
}

impl Handler {
    pub(super) fn new(
        shared: Arc<Shared>,
        ports: Vec<(Port, PortQueues)>,
        control: Option<PortQueues>,
        state: &SavedConsole,
        config_changed: ConfigChange,
    ) -> Self {
        let mut states = state.ports.iter().cloned();
        let ports = ports
            .into_iter()
            .map(|(port, queues)| RunningPort::new(port, queues, states.next().unwrap_or_default()))
            .collect();
        Self {
            shared,
            ports,
            control,
            driver_ready: state.driver_ready,
            messages: state.messages.iter().cloned().collect(),
            chain: Chain::new(),
            config_changed,
            unknown_messages: 0,
        }
    }

    fn state(&self) -> SavedConsole {
        SavedConsole {
            ports: self.ports.iter().map(|port| port.state.clone()).collect(),
            messages: self.messages.iter().cloned().collect(),
            driver_ready: self.driver_ready,
        }
    }

    /// Tells the driver what happened on the host.
    fn service_hosts(&mut self) {
        for (number, port) in self.ports.iter_mut().enumerate() {
            let events = port.port.host.service();
            let size = port.port.host.size();
            if number == 0 && self.shared.set_size(size) {
                self.config_changed.notify();
            }
            if !port.state.ready {
                continue;
            }
            if events.resized
                && port.port.console
                && let Some(size) = size
            {
                // One size is enough, the newest.
                let same =
                    |message: &Message| message.port as usize == number && message.event == event::RESIZE;
                self.messages.retain(|message| !same(message));
                self.messages.push_back(Message::resize(number, size));
            }
            // A console always has somebody to print to; a channel tells of its peer.
            let open = port.port.console || port.port.host.has_peer();
            // One peer went and the next came: who talks to them must not take them for one.
            let another = events.peer_changed && open && port.state.host_open && !port.port.console;
            if another {
                port.give_up_begun();
            }
            if another || open != port.state.host_open {
                port.state.host_open = open;
                let same =
                    |message: &Message| message.port as usize == number && message.event == event::PORT_OPEN;
                self.messages.retain(|message| !same(message));
                let closed = another.then(|| Message::new(number, event::PORT_OPEN, 0));
                self.messages.extend(closed.into_iter().chain([Message::new(
                    number,
                    event::PORT_OPEN,
                    open.into(),
                )]));
            }
        }
    }

    /// Handles what the driver says. `true`: there may be more.
    fn hear(&mut self) -> bool {
        for _ in 0..BUDGET {
            if self.messages.len() >= MAX_MESSAGES {
                return false;
            }
            let Some((_, queue)) = self.control.as_mut().and_then(|control| control.transmit.as_mut()) else {
                return false;
            };
            // A queue that is broken has told the driver already.
            if !matches!(queue.pop(&mut self.chain), Ok(true)) {
                return false;
            }
            let mut header = [0; HEADER];
            let count = self.chain.read_at(0, &mut header);
            queue.push(self.chain.token(), 0);
            if count == HEADER {
                self.handle(&Message::from_bytes(header));
            } else {
                self.unknown_messages = self.unknown_messages.saturating_add(1);
            }
        }
        true
    }

    fn handle(&mut self, message: &Message) {
        let number = usize::try_from(message.port).unwrap_or(usize::MAX);
        let on = message.value == 1;
        match (message.event, self.ports.get_mut(number)) {
            (event::DEVICE_READY, _) => {
                // Said once; a driver that says it again gets no more messages than it takes.
                if on && !self.driver_ready {
                    let ports = 0..self.ports.len();
                    self.messages.extend(ports.map(|port| Message::new(port, event::DEVICE_ADD, 0)));
                }
                self.driver_ready = on;
            }
            (event::PORT_READY, Some(port)) => {
                if on && !port.state.ready {
                    if port.port.console {
                        self.messages.push_back(Message::new(number, event::CONSOLE_PORT, 1));
                        if let Some(size) = port.port.host.size() {
                            self.messages.push_back(Message::resize(number, size));
                        }
                    } else {
                        self.messages.push_back(Message::name(number, &port.port.name));
                    }
                    // The next look at the hosts tells whether it is open.
                    port.state.host_open = false;
                }
                port.state.ready = on;
            }
            (event::PORT_OPEN, Some(port)) => port.state.guest_open = on,
            _ => self.unknown_messages = self.unknown_messages.saturating_add(1),
        }
    }

    /// Sends the driver what waits for it, as far as it has buffers.
    fn tell(&mut self) {
        for _ in 0..BUDGET {
            let Some(message) = self.messages.front() else { return };
            let Some((_, queue)) = self.control.as_mut().and_then(|control| control.receive.as_mut()) else {
                return;
            };
            if !matches!(queue.pop(&mut self.chain), Ok(true)) {
                return;
            }
            let header = self.chain.write_at(0, &message.header());
            let payload = self.chain.write_at(HEADER as u64, &message.payload);
            let written = header.saturating_add(payload);
            queue.push(self.chain.token(), u32::try_from(written).unwrap_or(0));
            self.messages.pop_front();
        }
    }

    fn control_has_work(&self) -> bool {
        let Some(control) = &self.control else { return false };
        let hears = self.messages.len() < MAX_MESSAGES && control.transmit_available();
        hears || (!self.messages.is_empty() && control.receive_available())
    }
}

impl QueueHandler for Handler {
    fn run(&mut self, _now: u64) -> Progress {
        for queues in self.ports.iter_mut().map(|port| &mut port.queues).chain(&mut self.control) {
            queues.disable_notifications();
        }
        let mut more = self.hear();
        self.service_hosts();
        self.tell();
        let multiport = self.control.is_some();
        for port in &mut self.ports {
            more |= port.transmit();
            let listens = !multiport || port.state.guest_open;
            more |= port.receive(listens, &mut self.chain);
            port.queues.notify();
        }
        if let Some(control) = &mut self.control {
            control.notify();
        }
        if more || self.has_work() { Progress::More } else { Progress::Idle }
    }

    fn arm(&mut self) -> bool {
        let mut work = false;
        for port in &mut self.ports {
            work |= port.arm();
        }
        if let Some(control) = &mut self.control {
            let hears = control.arm_transmit() && self.messages.len() < MAX_MESSAGES;
            let tells = !self.messages.is_empty() && control.arm_receive();
            work |= hears || tells;
        }
        work
    }

    fn has_work(&self) -> bool {
        self.control_has_work() || self.ports.iter().any(RunningPort::has_work)
    }

    fn event_sources(&self) -> Vec<RawFd> {
        self.ports.iter().map(|port| port.port.host.fd()).collect()
    }

    fn quiesce(&mut self) -> bool {
        for port in &mut self.ports {
            port.finish_transmitting();
            port.queues.notify();
        }
        *self.shared.state() = self.state();
        true
    }

    fn queues(&self) -> Vec<&Queue> {
        let all = self.ports.iter().map(|port| &port.queues).chain(&self.control);
        let mut queues: Vec<_> = all.flat_map(PortQueues::iter).collect();
        queues.sort_by_key(|(index, _)| *index);
        queues.into_iter().map(|(_, queue)| queue).collect()
    }

    fn into_queues(self: Box<Self>) -> Vec<Queue> {
        let mut queues = Vec::new();
        let mut ports = Vec::with_capacity(self.ports.len());
        for port in self.ports {
            queues.extend(port.queues.into_queues());
            ports.push(port.port);
        }
        queues.extend(self.control.into_iter().flat_map(PortQueues::into_queues));
        queues.sort_by_key(|(index, _)| *index);
        *self.shared.ports() = Some(ports);
        queues.into_iter().map(|(_, queue)| queue).collect()
    }
}

machine::inspect!(Handler, this => {
    multiport: this.control.is_some(),
    driver_ready,
    messages_waiting: this.messages.len(),
    unknown_messages,
    ports: this.ports.iter().map(Inspect::inspect).collect::<Vec<_>>(),
});
