//! Devices that come while the machine runs.
//!
//! A device is opened by a thread of its own: what opens files waits as long as their file system does, which may be for ever,
//! and everything else goes on meanwhile. It is then put in its place, and told to the guest's hotplug controller or to the
//! port it is plugged in at. When opening takes too long the call is given up; the thread ends when the host lets it.

use super::Machine;
use super::outputs;
use super::pci_bus::Plugged;
use super::persistent_memory::AfterRestart;
use super::registry::{self, Backend, Opened, Part};
use crate::api::request::{AddDevice, AddedReply};
use crate::api::{ApiError, ErrorKind, Reply, Respond};
use crate::config::{ConfigError, Device, DeviceConfig, VmConfig};
use crate::message::Message;
use anyhow::Result;
use machine::effect::FunctionAddress;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long the host may take to open a device, unless the call says otherwise.
const OPENING_LIMIT: Duration = Duration::from_secs(30);
/// How many devices may be being opened at a time, those that were given up among them.
const MOST_THREADS: usize = 64;

/// The devices that are being added.
#[derive(Default)]
pub struct Additions {
    next: u64,
    /// Those whose files are being opened.
    opening: BTreeMap<u64, Addition>,
    /// Those that are open, and wait until the machine is not busy.
    open: Vec<(u64, Result<Box<Opened>>, Vec<OwnedFd>)>,
    /// Threads that work on files of devices.
    threads: Arc<AtomicUsize>,
}

impl Additions {
    /// The devices that are being opened, or are open and not in their places.
    pub(super) fn coming(&self) -> impl Iterator<Item = &DeviceConfig> {
        self.opening.values().map(|addition| &addition.device)
    }
}

struct Addition {
    device: DeviceConfig,
    respond: Respond,
    deadline: Instant,
    limit: Duration,
    /// Nobody waits for it any more.
    given_up: Arc<AtomicBool>,
}

impl From<ConfigError> for ApiError {
    fn from(error: ConfigError) -> Self {
        Self::bad(error.to_string())
    }
}

/// Adds a device to a configuration, and names it.
///
/// # Errors
/// When the device cannot be among the others.
pub fn with_device(config: &VmConfig, mut device: DeviceConfig) -> Result<VmConfig, ApiError> {
    if let DeviceConfig::Watchdog(watchdog) = &mut device {
        watchdog.choose_model();
    }
    if let DeviceConfig::Console(console) = &device {
        console.check_there()?;
    }
    let mut config = config.clone();
    // What is there without being said is there before.
    config.name_devices();
    config.put_device(device)?;
    config.name_devices();
    config.validate()?;
    Ok(config)
}

impl Machine {
    /// Begins to add a device. `files` are the descriptors that came with the call.
    pub fn add_device(&mut self, add: AddDevice, mut files: Vec<OwnedFd>, respond: Respond) {
        let AddDevice { mut device, opening } = add;
        if !matches!(device, DeviceConfig::Net(_)) {
            files.clear();
        }
        if let DeviceConfig::Net(net) = &mut device
            && !files.is_empty()
        {
            // They are duplicated when the tap is opened.
            net.fds = Some(files.iter().map(AsRawFd::as_raw_fd).collect());
        }
        let (device, config) = match self.name(&device) {
            Ok(named) => named,
            Err(error) => return respond(Err(error)),
        };
        let limit = opening.timeout_ms.map_or(OPENING_LIMIT, Duration::from_millis);
        let given_up = Arc::new(AtomicBool::new(false));
        if let Err(error) = self.open(device.clone(), config, files, Arc::clone(&given_up)) {
            return respond(Err(error));
        }
        let addition = Addition { device, respond, deadline: super::after(limit), limit, given_up };
        self.additions.opening.insert(self.additions.next, addition);
        self.additions.next = self.additions.next.wrapping_add(1);
    }

    /// The device with a name, if it can be among those that are there and those that are coming, and the configuration with all of
    /// them.
    fn name(&self, device: &DeviceConfig) -> Result<(DeviceConfig, VmConfig), ApiError> {
        let config = self.config_with_coming()?;
        if let DeviceConfig::Pmem(pmem) = device {
            let size = pmem.size.unwrap_or_default();
            self.pmem
                .check(size.0)
                .map_err(|error| ApiError::bad(format!("{} size={size}: {error}", pmem.option())))?;
        }
        let config = with_device(&config, device.clone())?;
        self.check_stays(device.common().place().bus.as_deref())?;
        let named = config.last_like(device);
        let named = named.ok_or_else(|| ApiError::internal("the device is not in the configuration"))?;
        Ok((named, config))
    }

    /// Has a thread open a device, which `config` has.
    fn open(
        &self,
        device: DeviceConfig,
        config: VmConfig,
        files: Vec<OwnedFd>,
        given_up: Arc<AtomicBool>,
    ) -> Result<(), ApiError> {
        let counted = self.count_thread()?;
        let (site, mailbox, addition) = (Arc::clone(&self.site), self.mailbox.clone(), self.additions.next);
        let work = self.work.clone();
        let open = move || {
            let checked = outputs::check(&config);
            let result = checked.and_then(|()| registry::open(&site, &device)).map(Box::new);
            if given_up.load(Ordering::SeqCst) {
                // In this order: another machine may be built from then on.
                drop((result, files));
                drop((counted, work));
            } else {
                drop(counted);
                mailbox.post(Message::Opened { addition, result, files, work });
            }
        };
        let thread = std::thread::Builder::new().name("open".into()).stack_size(512 << 10);
        thread
            .spawn(open)
            .map(drop)
            .map_err(|error| ApiError::internal(format!("starting a thread: {error}")))
    }

    /// Counts a thread that works on files of devices, until what it returns is dropped.
    ///
    /// # Errors
    /// When there are as many as there can be.
    pub(super) fn count_thread(&self) -> Result<Counted, ApiError> {
        let before = self.additions.threads.fetch_add(1, Ordering::SeqCst);
        let counted = Counted(Arc::clone(&self.additions.threads));
        if before >= MOST_THREADS {
            return Err(ApiError::new(
                ErrorKind::Conflict,
                format!(
                    "the host works on the files of {MOST_THREADS} devices, which it does not complete; try again later"
                ),
            ));
        }
        Ok(counted)
    }

    /// A device is open, or cannot be.
    pub(super) fn opened(&mut self, addition: u64, result: Result<Box<Opened>>, files: Vec<OwnedFd>) {
        self.additions.open.push((addition, result, files));
    }

    /// Puts the devices that are open in their places. The machine is not busy.
    pub(super) fn seat_opened(&mut self) {
        for (addition, result, files) in std::mem::take(&mut self.additions.open) {
            let Some(Addition { mut device, respond, .. }) = self.additions.opening.remove(&addition) else {
                continue;
            };
            if let (DeviceConfig::Console(console), Ok(opened)) = (&mut device, &result)
                && let Some(terminal) = opened.seat.terminal()
            {
                console.file = Some(terminal.to_owned());
            }
            let seated = result.and_then(|opened| self.seat(*opened));
            match seated {
                Ok((id, address, restarting)) => {
                    if let Err(error) = self.config.put_device(device) {
                        tracing::error!("{error}");
                    }
                    if !files.is_empty() {
                        self.passed_files.insert(id.clone(), files);
                    }
                    self.after_restart(restarting, AfterRestart::Added { id, address, respond });
                }
                Err(error) => {
                    let reason = format!("{}{}", crate::cli::failure(&error), crate::landlock::hint(&error));
                    respond(Err(ApiError::bad(reason)));
                }
            }
        }
    }

    /// Puts a device in its place. Also returns the functions that have to go on with other memory before the guest may know.
    pub(super) fn seat(
        &mut self,
        opened: Opened,
    ) -> Result<(String, FunctionAddress, BTreeSet<FunctionAddress>)> {
        let Opened { backend, seat } = opened;
        let id = seat.id.clone();
        let (part, restarting) = match backend {
            Backend::Ready(part) => (part, BTreeSet::new()),
            Backend::Memory(file) => {
                let (device, restarting) = self.map_pmem(&id, file)?;
                (Part::Virtio(device), restarting)
            }
        };
        let taken = seat.take(part, &self.memory_devices, &mut self.pci);
        match taken.and_then(|address| self.check_fits(address)) {
            Ok(address) => Ok((id, address, restarting)),
            Err(error) => {
                let restarting = self.unmap_pmem(&id);
                self.after_restart(restarting, AfterRestart::Nothing);
                Err(error)
            }
        }
    }

    /// Checks that a function that has come fits at a restart, too, which gives everything its place anew.
    ///
    /// # Errors
    /// When it does not, naming it. It is taken out then.
    fn check_fits(&mut self, address: FunctionAddress) -> Result<FunctionAddress> {
        let checked = self.pci.check_bars(address.segment, self.layout.segments());
        if checked.is_err() {
            self.pci.remove(address)?;
        }
        checked.map(|()| address)
    }

    /// A device is in its place, and all others can work with it: tells the guest.
    pub(super) fn added(&mut self, id: String, address: FunctionAddress, respond: Respond) {
        if let Err(error) = self.tell_guest(address) {
            return respond(Err(error));
        }
        self.tell_added(&id, address);
        respond(Reply::json(&AddedReply { id, bdf: address.to_string() }));
    }

    /// Tells the guest that what is at `address` has come.
    ///
    /// # Errors
    /// When the host fails.
    pub(super) fn tell_guest(&mut self, address: FunctionAddress) -> Result<(), ApiError> {
        match self.pci.plug(address) {
            Ok(Plugged::BelowPort) => {}
            Ok(Plugged::OnRootBus) => {
                self.platform.notifier.pci_device_came(address.segment, address.device())
            }
            Err(error) => return Err(ApiError::internal(format!("{error:#}"))),
        }
        Ok(())
    }

    /// When the first addition is to be given up.
    pub(super) fn addition_deadline(&self) -> Option<Instant> {
        self.additions.opening.values().map(|addition| addition.deadline).min()
    }

    /// Answers those who waited for the host to open a device, and it did not.
    pub(super) fn give_up_additions(&mut self, now: Instant) {
        let overdue = self.additions.opening.iter().filter(|(_, addition)| addition.deadline <= now);
        let overdue: Vec<_> = overdue.map(|(number, _)| *number).collect();
        for number in overdue {
            let Some(addition) = self.additions.opening.remove(&number) else { continue };
            let Addition { device, respond, limit, given_up, .. } = addition;
            given_up.store(true, Ordering::SeqCst);
            respond(Err(ApiError::new(
                ErrorKind::Timeout,
                format!(
                    "{}: the host did not open it within {} ms, and it is not added; look after the file system that it is on",
                    device.common().option(),
                    limit.as_millis()
                ),
            )));
        }
    }

    /// The machine ends: answers those who wait.
    pub(super) fn refuse_additions(&mut self, refused: impl Fn() -> ApiError) {
        for addition in std::mem::take(&mut self.additions.opening).into_values() {
            addition.given_up.store(true, Ordering::SeqCst);
            (addition.respond)(Err(refused()));
        }
        self.additions.open.clear();
    }
}

/// Counts a thread until it ends.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
