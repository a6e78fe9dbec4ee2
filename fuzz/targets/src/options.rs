//! `options`: the command line, and each option's value.

use crate::input::Input;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use vmm::cli::{self, Command};
use vmm::config::{
    BalloonConfig, ConsoleConfig, CpusConfig, DebugConsoleConfig, DiskConfig, MemoryConfig, MemoryZoneConfig,
    NetConfig, NumaConfig, Options, PciSegmentConfig, PlatformConfig, RateLimitGroupConfig, RngConfig,
    VmConfig, WatchdogConfig, console,
};

/// The first byte chooses: an option, whose value is the rest, or the whole command line, one argument a line.
pub fn options(data: &[u8]) {
    let input = &mut Input::new(data);
    let choice = input.below(16);
    let rest = input.rest();
    let text = String::from_utf8_lossy(rest);
    match choice {
        0 => value::<CpusConfig>(&text),
        1 => value::<MemoryConfig>(&text),
        2 => value::<MemoryZoneConfig>(&text),
        3 => value::<NumaConfig>(&text),
        4 => value::<DiskConfig>(&text),
        5 => value::<NetConfig>(&text),
        6 => value::<RngConfig>(&text),
        7 => console_value::<ConsoleConfig>(&text),
        8 => console_value::<DebugConsoleConfig>(&text),
        9 => value::<PlatformConfig>(&text),
        10 => value::<PciSegmentConfig>(&text),
        11 => value::<RateLimitGroupConfig>(&text),
        12 => json(&text),
        13 => value::<BalloonConfig>(&text),
        14 => value::<WatchdogConfig>(&text),
        _ => command_line(rest),
    }
}

fn value<T: Options + PartialEq + std::fmt::Debug>(text: &str) {
    match T::parse(text) {
        Ok(options) => same_in_json(&options),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn console_value<T: Options + console::Console + PartialEq + std::fmt::Debug>(text: &str) {
    match console::parse::<T>(text) {
        Ok(options) => same_in_json(&options),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// What an option says can be said in JSON too.
fn same_in_json<T: Options + PartialEq + std::fmt::Debug>(options: &T) {
    let text = serde_json::to_string(options).expect("an option has a JSON form");
    assert_eq!(serde_json::from_str::<T>(&text).expect("an option reads its own JSON"), *options);
}

fn json(text: &str) {
    if let Ok(config) = serde_json::from_str::<VmConfig>(text) {
        // Whether it makes sense is another matter.
        let _ = config.validate();
        let again = serde_json::to_string(&config).expect("a configuration has a JSON form");
        assert_eq!(serde_json::from_str::<VmConfig>(&again).expect("it reads its own JSON"), config);
    }
}

fn command_line(text: &[u8]) {
    let lines = text.split(|byte| *byte == b'\n').map(|line| OsString::from_vec(line.to_vec()));
    match cli::parse(std::iter::once("vivarium".into()).chain(lines)) {
        Ok(Command::Run(run)) => {
            let text = serde_json::to_string(&run.config).expect("a configuration has a JSON form");
            let again: Option<VmConfig> = serde_json::from_str(&text).expect("it reads its own JSON");
            assert_eq!(again, run.config);
        }
        Ok(Command::Print(text)) => assert!(!text.is_empty()),
        Err(error) => {
            assert!(!error.0.is_empty() && !error.0.contains('\n'), "one line for the user: {:?}", error.0);
        }
    }
}
