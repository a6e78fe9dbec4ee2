//! How long calls may take. Each has a deadline, at which whoever made it gets an answer, whatever hangs.
//!
//! A call whose turn has not come by then is not made. One that was begun goes on: what it waits for is the host's or the guest's,
//! and tells by an event when it is done.

use crate::api::{Answer, ApiError, Call, ErrorKind, Interest, Request, Respond};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is to be done within which time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Until a call's turn comes.
    pub turn: Duration,
    /// What a call waits for that has no limit of its own.
    pub call: Duration,
    /// What reads or writes all of the machine's memory.
    pub long_call: Duration,
    /// Until CPUs are parked and requests in flight complete, before a pause is given up.
    pub pause: Duration,
    /// Until requests in flight are complete of a machine that ends.
    pub end: Duration,
    /// Until it is taken apart, after that.
    pub leave: Duration,
    /// Until a machine that is no longer wanted is complete, or one whose requests in flight hang is taken apart nevertheless.
    pub last_chance: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            turn: Duration::from_secs(60),
            call: Duration::from_secs(60),
            long_call: Duration::from_secs(600),
            pause: Duration::from_secs(30),
            end: Duration::from_secs(30),
            leave: Duration::from_secs(60),
            last_chance: Duration::from_secs(1),
        }
    }
}

impl Limits {
    /// Of a call, from when its turn comes.
    fn of(&self, request: &Request) -> Duration {
        let own = match request {
            // Those have limits of their own, one after the other.
            Request::Shutdown | Request::Delete | Request::VmmShutdown => {
                return self.end.saturating_add(self.leave).saturating_add(self.call);
            }
            Request::Boot | Request::Coredump(_) | Request::Resize(_) => return self.long_call,
            Request::Add(add) => add.opening.timeout_ms,
            Request::RemoveDevice(remove) => remove.timeout_ms,
            _ => None,
        };
        self.call.saturating_add(Duration::from_millis(own.unwrap_or_default()))
    }
}

/// Calls that are not answered yet.
#[derive(Default)]
pub(super) struct Outstanding {
    limits: Limits,
    /// Calls whose turn has not come.
    turns: VecDeque<Call>,
    promises: Vec<Promise>,
}

/// An answer that somebody is to have at its deadline.
struct Promise {
    name: &'static str,
    respond: Arc<Mutex<Option<Respond>>>,
    interest: Interest,
    limit: Duration,
    deadline: Instant,
}

impl Promise {
    fn take(&self) -> Option<Respond> {
        self.respond.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether somebody still waits for it.
    fn counts(&self) -> bool {
        let kept = self.respond.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        !kept && !self.interest.is_lost()
    }
}

impl Outstanding {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Has a call wait its turn.
    pub(super) fn wait(&mut self, call: Call) {
        // Those who tried again have left the calls of before behind.
        self.turns.retain(|call| !call.interest.is_lost());
        let Call { request, files, respond, interest } = call;
        let respond = self.promise(&request, respond, &interest, self.limits.turn);
        self.turns.push_back(Call { request, files, respond, interest });
    }

    /// The call whose turn it is. Those for which nobody waits have none.
    pub(super) fn next_turn(&mut self) -> Option<Call> {
        loop {
            let call = self.turns.pop_front()?;
            if !call.interest.is_lost() {
                return Some(call);
            }
        }
    }

    /// A call's turn has come: has it answered at its deadline.
    pub(super) fn begin(&mut self, call: Call) -> Call {
        let Call { request, files, respond, interest } = call;
        let waited = self.promises.iter().position(|promise| promise.interest.is(&interest));
        let limit = self.limits.of(&request);
        let respond = match waited.map(|at| &mut self.promises[at]) {
            Some(promise) => {
                (promise.limit, promise.deadline) = (limit, after(limit));
                respond
            }
            None => self.promise(&request, respond, &interest, limit),
        };
        Call { request, files, respond, interest }
    }

    fn promise(
        &mut self,
        request: &Request,
        respond: Respond,
        interest: &Interest,
        limit: Duration,
    ) -> Respond {
        self.promises.retain(Promise::counts);
        let respond = Arc::new(Mutex::new(Some(respond)));
        self.promises.push(Promise {
            name: request.name(),
            respond: Arc::clone(&respond),
            interest: interest.clone(),
            limit,
            deadline: after(limit),
        });
        Box::new(move |answer| {
            let respond = respond.lock().unwrap_or_else(PoisonError::into_inner).take();
            super::answer(respond, answer);
        })
    }

    /// When [`Outstanding::give_up`] is to be called.
    pub(super) fn deadline(&mut self) -> Option<Instant> {
        self.promises.retain(Promise::counts);
        self.promises.iter().map(|promise| promise.deadline).min()
    }

    /// Answers those who have waited for too long.
    pub(super) fn give_up(&mut self, now: Instant) {
        for promise in self.promises.extract_if(.., |promise| promise.deadline <= now) {
            let begun = !self.turns.iter().any(|call| call.interest.is(&promise.interest));
            promise.interest.lose();
            super::answer(promise.take(), overdue(&promise, begun));
        }
        self.turns.retain(|call| !call.interest.is_lost());
    }
}

fn after(limit: Duration) -> Instant {
    let now = Instant::now();
    // An eternity that no clock can tell is as good as one that it can.
    now.checked_add(limit).unwrap_or_else(|| now + Duration::from_secs(u64::from(u32::MAX)))
}

fn overdue(promise: &Promise, begun: bool) -> Answer {
    let Promise { name, limit, .. } = promise;
    let limit = limit.as_secs_f64();
    let message = if begun {
        format!(
            "{name}: the host or the guest did not complete it within {limit} s; it goes on, and vm.events tells of it; vm.shutdown \
             ends the machine"
        )
    } else {
        format!(
            "{name}: its turn did not come within {limit} s, and it was not begun; vm.info and vm.events tell what the machine is \
             about; vm.shutdown ends it"
        )
    };
    Err(ApiError::new(ErrorKind::Timeout, message))
}
