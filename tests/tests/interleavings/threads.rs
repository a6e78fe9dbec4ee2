//! The process's other threads: whether they all sleep.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// A thread's number, and how often it went to sleep.
type Sleeps = BTreeMap<u32, u64>;

/// The threads of the process but the one that asks.
pub struct Threads {
    own: u32,
    /// Their files in `/proc`, kept open because they are read often.
    files: BTreeMap<u32, File>,
}

impl Threads {
    /// Those that there are beside the calling thread.
    pub fn new() -> Self {
        let own = std::fs::read_link("/proc/thread-self").unwrap();
        let own = own.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        Self { own: own.unwrap(), files: BTreeMap::new() }
    }

    /// Waits until all of them sleep, and nothing is left to wake one but the calling thread.
    pub fn settle(&mut self) {
        // One may have been woken after it was looked at, by one that was not looked at yet: it has slept once more by the next time.
        while self.asleep().is_none_or(|sleeps| self.asleep() != Some(sleeps)) {
            std::thread::yield_now();
        }
    }

    /// `None`: one of them runs, or has just begun or ended.
    fn asleep(&mut self) -> Option<Sleeps> {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let numbers = tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse::<u32>().unwrap());
        let mut sleeps = Sleeps::new();
        let mut open = BTreeMap::new();
        for number in numbers.filter(|number| *number != self.own) {
            let file = match self.files.remove(&number) {
                Some(file) => file,
                None => File::open(format!("/proc/self/task/{number}/status")).ok()?,
            };
            let mut status = [0; 4096];
            let length = file.read_at(&mut status, 0).ok()?;
            let status = String::from_utf8_lossy(&status[..length]);
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
            if !field("State:")?.trim_start().starts_with('S') {
                return None;
            }
            sleeps.insert(number, field("voluntary_ctxt_switches:")?.trim().parse().ok()?);
            open.insert(number, file);
        }
        self.files = open;
        Some(sleeps)
    }
}
