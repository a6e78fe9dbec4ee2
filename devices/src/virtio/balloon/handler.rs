//! Runs the queues of a balloon.

use super::free_pages;
use super::shared::Shared;
use super::{PAGE_SIZE, feature, pages};
use machine::clock::Clock;
use machine::inspect::Inspect;
use machine::memory::{HostPages, Memory};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use virtio::chain::Chain;
use virtio::device::{Progress, QueueHandler};
use virtio::queue::Queue;

/// How many requests, or parts of large ones, one run handles on each queue.
const BUDGET: u32 = 16;

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Hints,
    Reports,
}

/// Which queue is for what.
pub(super) struct Roles(Vec<(u16, Role)>);

impl Roles {
    /// By the features agreed upon and the queues that the driver enabled.
    ///
    /// The specification gives each queue its number, whether those before it exist or not (5.5.2). Linux counts only those
    /// that exist. When both were agreed upon that is the same; otherwise the enabled queues tell who the driver is.
    pub(super) fn new(features: u64, enabled: &[u16]) -> Self {
        let optional = [
            (2, Role::Statistics, feature::STATS_VQ),
            (3, Role::Hints, feature::FREE_PAGE_HINT),
            (4, Role::Reports, feature::REPORTING),
        ];
        let present: Vec<_> = optional.into_iter().filter(|(_, _, bit)| features & bit != 0).collect();
        let counted = (2_u16..).zip(&present).map(|(index, (_, role, _))| (index, *role));
        let counted: Vec<_> = [(0, Role::Inflate), (1, Role::Deflate)].into_iter().chain(counted).collect();
        if counted.iter().all(|(index, _)| enabled.contains(index)) && counted.len() == enabled.len() {
            return Self(counted);
        }
        let numbered = present.iter().map(|(index, role, _)| (*index, *role));
        Self([(0, Role::Inflate), (1, Role::Deflate)].into_iter().chain(numbered).collect())
    }

    fn of(&self, index: u16) -> Option<Role> {
        self.0.iter().find(|(known, _)| *known == index).map(|(_, role)| *role)
    }
}

/// A queue and the request of it that is being worked on.
struct Lane {
    /// `None`: the driver enabled a queue without the feature it belongs to.
    role: Option<Role>,
    queue: Queue,
    chain: Chain,
    /// `chain` was popped, and is done up to this byte.
    at: Option<u64>,
}

/// What the steps of all lanes use.
struct Tools {
    shared: Arc<Shared>,
    pages: Arc<dyn HostPages>,
    memory: Memory,
}

pub(super) struct Handler {
    lanes: Vec<Lane>,
    tools: Tools,
    clock: Arc<dyn Clock>,
    /// Nanoseconds between requests for statistics; 0: none of its own accord.
    interval: u64,
    /// When statistics are to be asked for next.
    next_statistics: Option<u64>,
}

impl Handler {
    pub(super) fn new(
        shared: Arc<Shared>,
        pages: Arc<dyn HostPages>,
        memory: Memory,
        clock: Arc<dyn Clock>,
        interval: Duration,
        roles: &Roles,
        queues: Vec<(u16, Queue)>,
    ) -> Self {
        let lane = |(index, queue)| Lane { role: roles.of(index), queue, chain: Chain::new(), at: None };
        Self {
            lanes: queues.into_iter().map(lane).collect(),
            tools: Tools { shared, pages, memory },
            clock,
            interval: u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX),
            next_statistics: None,
        }
    }

    /// Asks for statistics if it is time or somebody wants them.
    fn ask_for_statistics(&mut self) {
        let now = self.clock.monotonic_ns();
        let shared = &self.tools.shared;
        shared.bell.take();
        let due = self.interval > 0 && self.next_statistics.is_none_or(|time| time <= now);
        if due {
            self.next_statistics = Some(now.saturating_add(self.interval));
        }
        let held = self.lanes.iter_mut().find(|lane| lane.holds_statistics());
        let Some(lane) = held else { return };
        if due | shared.statistics_wanted.swap(false, Ordering::SeqCst) {
            lane.at = None;
            lane.queue.push_held(lane.chain.token(), 0);
            lane.queue.notify();
        }
    }
}

impl Lane {
    /// Whether the driver's buffer for statistics is here, to be given back when new ones are wanted.
    fn holds_statistics(&self) -> bool {
        self.role == Some(Role::Statistics) && self.at.is_some()
    }

    /// Whether a run would do something.
    fn has_work(&self) -> bool {
        match self.role {
            None => false,
            // One buffer is all that a driver has for statistics.
            Some(Role::Statistics) => self.at.is_none() && self.queue.has_available(),
            Some(_) => self.at.is_some() || self.queue.has_available(),
        }
    }

    fn run(&mut self, tools: &Tools) -> Progress {
        let Some(role) = self.role else { return Progress::Idle };
        self.queue.disable_notifications();
        let mut progress = Progress::More;
        for _ in 0..BUDGET {
            if self.holds_statistics() {
                progress = Progress::Idle;
                break;
            }
            let offset = match self.at {
                Some(offset) => offset,
                None => match self.queue.pop(&mut self.chain) {
                    Ok(true) => 0,
                    // A broken queue has told the driver already.
                    Ok(false) | Err(_) => {
                        progress = Progress::Idle;
                        break;
                    }
                },
            };
            self.at = tools.step(role, &self.chain, offset);
            if self.at.is_none() {
                self.queue.push(self.chain.token(), 0);
            }
        }
        self.queue.notify();
        progress
    }
}

impl Tools {
    /// Does a part of the request `chain`, beginning at `offset`, and returns where the next part begins. `None`: the
    /// request is done.
    fn step(&self, role: Role, chain: &Chain, offset: u64) -> Option<u64> {
        let counters = &self.shared.counters;
        match role {
            Role::Inflate => pages::inflate(chain, offset, self.pages.as_ref(), counters),
            Role::Deflate => {
                // The pages come back when the guest touches them.
                counters.deflated_pages.add(chain.readable_len() / pages::NUMBER_BYTES);
                None
            }
            Role::Statistics => {
                self.shared.statistics.take(chain);
                Some(0)
            }
            Role::Hints => {
                if offset == 0 && chain.readable_len() > 0 {
                    let mut command = [0; 4];
                    if chain.read_at(0, &mut command) == command.len() {
                        self.shared.hint_command_answered(u32::from_le_bytes(command));
                    }
                }
                let piece = free_pages::piece(chain, offset, &self.memory)?;
                if !self.shared.is_poisoned()
                    && let Some(sink) = self.shared.hint_sink()
                {
                    counters.hinted_bytes.add(piece.range.size);
                    sink(piece.range);
                }
                Some(piece.next)
            }
            Role::Reports => {
                let piece = free_pages::piece(chain, offset, &self.memory)?;
                counters.reported_bytes.add(piece.range.size);
                if self.shared.is_poisoned() {
                    counters.refused_pages.add(piece.range.size / PAGE_SIZE);
                } else {
                    pages::release(piece.range, self.pages.as_ref(), counters);
                }
                Some(piece.next)
            }
        }
    }
}

impl QueueHandler for Handler {
    fn run(&mut self, _now: u64) -> Progress {
        let mut more = false;
        for lane in &mut self.lanes {
            more |= lane.run(&self.tools) == Progress::More;
        }
        self.ask_for_statistics();
        match self.next_statistics {
            _ if more => Progress::More,
            Some(time) => Progress::Until(time),
            None => Progress::Idle,
        }
    }

    fn arm(&mut self) -> bool {
        // All of them, whatever the first says.
        for lane in &mut self.lanes {
            lane.queue.enable_notifications();
        }
        self.has_work()
    }

    fn has_work(&self) -> bool {
        let wanted = self.tools.shared.statistics_wanted.load(Ordering::SeqCst);
        self.lanes.iter().any(|lane| lane.has_work() || wanted && lane.holds_statistics())
    }

    fn event_sources(&self) -> Vec<RawFd> {
        vec![self.tools.shared.bell.as_raw_fd()]
    }

    fn quiesce(&mut self) -> bool {
        // What was begun is begun anew: releasing pages twice that are not the guest's is the same as once.
        for lane in &mut self.lanes {
            if lane.at.take().is_some() {
                lane.queue.unpop(lane.chain.token());
            }
        }
        true
    }

    fn queues(&self) -> Vec<&Queue> {
        self.lanes.iter().map(|lane| &lane.queue).collect()
    }

    fn into_queues(self: Box<Self>) -> Vec<Queue> {
        self.lanes.into_iter().map(|lane| lane.queue).collect()
    }
}

machine::inspect!(Handler, this => {
    next_statistics_ns: this.next_statistics,
    queues: this.lanes.iter().map(Inspect::inspect).collect::<Vec<_>>(),
});

machine::inspect!(Lane, this => {
    role: this.role.map(|role| format!("{role:?}").to_lowercase()),
    request_offset: this.at,
    queue,
});

#[cfg(test)]
impl Roles {
    pub(super) fn role_names(&self) -> Vec<String> {
        self.0.iter().map(|(_, role)| format!("{role:?}")).collect()
    }

    pub(super) fn index_of(&self, name: &str) -> Option<u16> {
        self.0.iter().find(|(_, role)| format!("{role:?}") == name).map(|(index, _)| *index)
    }
}
