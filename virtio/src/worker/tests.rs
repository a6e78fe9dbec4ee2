//! Handlers on a real thread, driven through their rings as by a guest on another CPU.

use super::*;
use crate::device::{Progress, QueueHandler};
use crate::queue::Queue;
use crate::testing::{Driver, Echo, Layout};
use machine::clock::{ManualClock, SystemClock};
use machine::inspect::json;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn worker(poll: Duration) -> Worker {
    let options = WorkerOptions { poll, ..WorkerOptions::named("test") };
    Worker::spawn(options, Arc::new(SystemClock::new()), || {}).unwrap()
}

/// Puts an echo device's handlers on `worker`.
fn start(worker: &Worker, driver: &mut Driver) -> Vec<TaskId> {
    let tasks = std::mem::take(&mut driver.tasks);
    let add = |task: QueueTask| {
        let bells = driver.function.doorbells_of(&task);
        worker.add(task, bells)
    };
    tasks.into_iter().map(add).collect()
}

fn stop_all(worker: &Worker) -> Vec<QueueTask> {
    let (sender, receiver) = mpsc::channel();
    worker.stop_all(move |tasks| sender.send(tasks).unwrap());
    receiver.recv().unwrap()
}

#[test]
fn requests_are_answered_sleeping_or_polling() {
    for poll in [Duration::ZERO, DEFAULT_POLL, Duration::from_millis(5)] {
        for layout in [Layout::SPLIT, Layout::PACKED] {
            let worker = worker(poll);
            let mut driver = Driver::new(Box::new(Echo::new()), layout);
            start(&worker, &mut driver);
            for i in 0..300_u32 {
                let queue = (i % 2) as u16;
                let data = i.to_le_bytes();
                driver.request(queue, &[&data], &[4]).unwrap();
                driver.kick(queue);
                let completion = loop {
                    match driver.completion(queue) {
                        Some(completion) => break completion,
                        None => std::thread::yield_now(),
                    }
                };
                assert_eq!(completion.data, data);
            }
            driver.tasks = stop_all(&worker);
            assert_eq!(driver.tasks.len(), 2);
            driver.reset();
        }
    }
}

#[test]
fn a_stopped_handler_runs_on_elsewhere() {
    let mut driver = Driver::new(Box::new(Echo::new()), Layout::PACKED);
    let mut answered = 0;
    for round in 0..20_u8 {
        let worker = worker(DEFAULT_POLL);
        let ids = start(&worker, &mut driver);
        driver.request(0, &[&[round; 8]], &[8]).unwrap();
        driver.kick(0);
        let (sender, receiver) = mpsc::channel();
        for id in ids.iter().copied() {
            let sender = sender.clone();
            worker.stop(id, move |task| sender.send(task.unwrap()).unwrap());
        }
        driver.tasks = receiver.iter().take(2).collect();
        worker.stop(ids[0], move |task| sender.send(task.unwrap_or_else(gone)).unwrap());
        assert_eq!(receiver.recv().unwrap().name, "gone", "it is not there twice");
        // What the stopped handlers had not done is done by whoever has them now.
        driver.run();
        while let Some(completion) = driver.completion(0) {
            assert_eq!(completion.data, [answered; 8]);
            answered += 1;
        }
    }
    assert_eq!(answered, 20);
}

fn gone() -> QueueTask {
    QueueTask { name: "gone".into(), queues: Vec::new(), handler: Box::new(Scripted::default()) }
}

/// A handler that reports its runs and does what it is told.
#[derive(Default)]
struct Scripted {
    progress: Vec<Progress>,
    runs: Option<Sender<usize>>,
    run: usize,
    source: Option<EventFd>,
    /// How often it says that it is not yet at rest.
    restless: u32,
    /// How often arming finds work, which the next run does.
    finds: usize,
    /// There is always more to do.
    endless: bool,
}

impl QueueHandler for Scripted {
    fn run(&mut self, _now: u64) -> Progress {
        if let Some(source) = &self.source {
            let _ = source.read();
        }
        let progress = self.progress.get(self.run).copied().unwrap_or(if self.endless {
            Progress::More
        } else {
            Progress::Idle
        });
        self.run += 1;
        if let Some(runs) = &self.runs {
            let _ = runs.send(self.run);
        }
        progress
    }

    fn arm(&mut self) -> bool {
        let found = self.finds > 0;
        self.finds = self.finds.saturating_sub(1);
        found
    }

    fn has_work(&self) -> bool {
        false
    }

    fn event_sources(&self) -> Vec<RawFd> {
        self.source.iter().map(AsRawFd::as_raw_fd).collect()
    }

    fn quiesce(&mut self) -> bool {
        self.restless = self.restless.saturating_sub(1);
        self.restless == 0
    }

    fn queues(&self) -> Vec<&Queue> {
        Vec::new()
    }

    fn into_queues(self: Box<Self>) -> Vec<Queue> {
        Vec::new()
    }
}

impl Inspect for Scripted {
    fn inspect(&self) -> Value {
        json!({"runs": self.run})
    }
}

fn scripted(name: &str, handler: Scripted) -> QueueTask {
    QueueTask { name: name.into(), queues: Vec::new(), handler: Box::new(handler) }
}

#[test]
fn doorbells_sources_and_times_run_a_handler() {
    for poll in [Duration::ZERO, DEFAULT_POLL] {
        let worker = worker(poll);
        let (runs, ran) = mpsc::channel();
        let source = EventFd::new(EFD_NONBLOCK).unwrap();
        let handler = Scripted {
            runs: Some(runs),
            source: Some(source.try_clone().unwrap()),
            // The third run asks for a time long past, the fourth for more.
            progress: vec![Progress::Idle, Progress::Idle, Progress::Until(1), Progress::More],
            ..Scripted::default()
        };
        let bell = Doorbell::new().unwrap();
        worker.add(scripted("s", handler), vec![bell.clone()]);
        assert_eq!(ran.recv().unwrap(), 1, "a new handler is run at once");
        source.write(1).unwrap();
        assert_eq!(ran.recv().unwrap(), 2);
        for run in 3..=5 {
            if run == 3 {
                bell.ring();
            }
            assert_eq!(ran.recv().unwrap(), run);
        }
        bell.ring();
        assert_eq!(ran.recv().unwrap(), 6, "a bell that is never read rings again");
    }
}

#[test]
fn a_busy_handler_leaves_the_others_their_turn() {
    let worker = worker(DEFAULT_POLL);
    let busy = Scripted { endless: true, ..Scripted::default() };
    let (runs, ran) = mpsc::channel();
    let source = EventFd::new(EFD_NONBLOCK).unwrap();
    let quiet =
        Scripted { runs: Some(runs), source: Some(source.try_clone().unwrap()), ..Scripted::default() };
    worker.add(scripted("busy", busy), Vec::new());
    worker.add(scripted("quiet", quiet), Vec::new());
    for run in 1..=10 {
        assert_eq!(ran.recv().unwrap(), run);
        source.write(1).unwrap();
    }
}

/// Arming moved the notification to what it found, so that no kick comes for it.
#[test]
fn what_arming_finds_is_done_as_often_as_it_does_also_while_waiting_for_a_time() {
    for progress in [Progress::Idle, Progress::Until(u64::MAX / 2)] {
        // That time never comes on this clock.
        let clock = Arc::new(ManualClock::default());
        let worker = Worker::spawn(WorkerOptions::named("test"), clock, || {}).unwrap();
        worker.set_poll(Duration::ZERO);
        let (runs, ran) = mpsc::channel();
        let waiting =
            Scripted { runs: Some(runs), progress: vec![progress; 100], finds: 5, ..Scripted::default() };
        let bell = Doorbell::new().unwrap();
        worker.add(scripted("waiting", waiting), vec![bell.clone()]);
        for run in 1..=6 {
            assert_eq!(ran.recv().unwrap(), run);
        }
        // A worker that was woken for a message had been sleeping.
        let mut wakeups = Vec::new();
        while wakeups.len() < 3 {
            let (sender, receiver) = mpsc::channel();
            worker.inspect_tasks(move |value| sender.send(value).unwrap());
            let value = receiver.recv().unwrap();
            assert_eq!(value["tasks"][0]["runs"], 6, "and not more often");
            if wakeups.last() != Some(&value["counters"]["wakeups"]) {
                wakeups.push(value["counters"]["wakeups"].clone());
            }
        }
        bell.ring();
        assert_eq!(ran.recv().unwrap(), 7, "and then only when something happens");
        assert_eq!(stop_all(&worker).len(), 1);
    }
}

#[test]
fn a_handler_whose_arming_always_finds_work_leaves_the_others_their_turn() {
    let worker = worker(Duration::ZERO);
    let busy = Scripted { finds: usize::MAX, ..Scripted::default() };
    let (runs, ran) = mpsc::channel();
    let source = EventFd::new(EFD_NONBLOCK).unwrap();
    let quiet =
        Scripted { runs: Some(runs), source: Some(source.try_clone().unwrap()), ..Scripted::default() };
    worker.add(scripted("busy", busy), Vec::new());
    worker.add(scripted("quiet", quiet), Vec::new());
    for run in 1..=10 {
        assert_eq!(ran.recv_timeout(Duration::from_secs(10)).unwrap(), run);
        source.write(1).unwrap();
    }
}

#[test]
fn stopping_waits_for_rest_without_blocking_anyone() {
    let worker = worker(Duration::ZERO);
    let slow = worker.add(scripted("slow", Scripted { restless: 5, ..Scripted::default() }), Vec::new());
    let quick = worker.add(scripted("quick", Scripted::default()), Vec::new());
    let (sender, receiver) = mpsc::channel();
    for id in [slow, quick] {
        let sender = sender.clone();
        worker.stop(id, move |task| sender.send(task.unwrap().name).unwrap());
    }
    assert_eq!(receiver.recv().unwrap(), "quick");
    assert_eq!(receiver.recv().unwrap(), "slow");
}

#[test]
fn a_dropped_worker_brings_its_handlers_to_rest() {
    let worker = worker(Duration::ZERO);
    let (runs, ran) = mpsc::channel();
    worker
        .add(scripted("slow", Scripted { restless: 3, runs: Some(runs), ..Scripted::default() }), Vec::new());
    assert_eq!(ran.recv().unwrap(), 1);
    drop(worker);
    assert!(ran.recv().is_err(), "the handler is gone, and with it its end of the channel");
}

#[test]
fn inspection_shows_handlers_and_counters() {
    let worker = worker(Duration::ZERO);
    let mut driver = Driver::new(Box::new(Echo::with_single_handler()), Layout::SPLIT);
    start(&worker, &mut driver);
    let (sender, receiver) = mpsc::channel();
    worker.inspect_tasks(move |value| sender.send(value).unwrap());
    let value = receiver.recv().unwrap();
    assert_eq!(value["tasks"][0]["queues"], json!([0, 1]));
    assert_eq!(value["tasks"][0]["handler"]["queues"][0]["size"], 64);
    assert_eq!(worker.name(), "test");
    assert_eq!(value["counters"]["failures"], worker.inspect()["failures"]);
}

#[test]
fn a_worker_whose_cpu_does_not_exist_runs_on_any() {
    for cpu in [1 << 20, 1023] {
        let options = WorkerOptions { cpus: vec![cpu], ..WorkerOptions::named("test") };
        let worker = Worker::spawn(options, Arc::new(SystemClock::new()), || {}).unwrap();
        let (sender, receiver) = mpsc::channel();
        worker.inspect_tasks(move |value| sender.send(value).unwrap());
        assert_eq!(receiver.recv().unwrap()["counters"]["failures"], 1, "CPU {cpu}");
    }
}
