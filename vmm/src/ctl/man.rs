//! Manual pages (man(7)), from the definitions of the options: of the machine, of each command and of each verb.

use super::body::{keys_of, option_of};
use crate::api::routes::{ROUTES, Serves, Takes};
use crate::cli::{self, shape};
use crate::config_help::{self, ENTRIES, Entry, SYNTAX};
use clap::{Arg, Command};
use std::time::{SystemTime, UNIX_EPOCH};

/// What the machine's process ends with.
const STATUSES: &[(&str, &str)] = &[
    ("0", "The guest powered off, or the process was asked to end."),
    ("1", "Something failed: one line on standard error says what; if a CPU did, its registers follow."),
    ("2", "The command line cannot be understood: one line on standard error names the option."),
    ("159", "A system call was made that the filters forbid."),
];

/// What a client ends with.
const CLIENT_STATUSES: &[(&str, &str)] = &[
    ("0", "It is done."),
    ("1", "The monitor refuses, or cannot be reached."),
    ("2", "The command line cannot be understood."),
];

const SIGNALS: &[(&str, &str)] = &[
    ("SIGTERM, SIGINT, SIGHUP, SIGXCPU", "End the machine at once, as if the power had failed."),
    ("SIGUSR1", "Press the guest's power button."),
];

const FILES: &[(&str, &str)] = &[
    ("/dev/kvm", "The host's KVM, which the user needs to be allowed to read and write."),
    ("/dev/net/tun", "Taps, for --net."),
    ("/dev/urandom", "The entropy that --rng gives by default."),
];

const JAIL_FILES: &[(&str, &str)] = &[
    (
        "/run/vivarium/jail/ID",
        "Where the root folder of the jail of that name is mounted; --base says another place.",
    ),
    ("/sys/fs/cgroup/vivarium/ID", "Its control group, if there are --cgroup settings."),
];

/// Every page: its file's name, and its text.
pub(super) fn pages() -> Vec<(String, String)> {
    let mut ctl = super::command("vivarium ctl");
    ctl.build();
    let mut jail = crate::jail::command();
    jail.build();
    let verbs: Vec<&Command> = verbs(&ctl).collect();
    let mut pages = vec![
        ("vivarium.1".into(), machine()),
        ("vivarium-jail.1".into(), self::jail(&jail)),
        ("vivarium-ctl.1".into(), client(&ctl, &verbs)),
    ];
    for verb in verbs {
        pages.push((format!("vivarium-ctl-{}.1", verb.get_name()), self::verb(verb)));
    }
    pages
}

fn verbs(ctl: &Command) -> impl Iterator<Item = &Command> {
    ctl.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
}

fn machine() -> String {
    let mut command = cli::command();
    command.build();
    let mut page = Page::new("vivarium", &about(&command));
    page.section("SYNOPSIS");
    for line in [
        "vivarium [OPTIONS]",
        "vivarium jail --id ID --uid UID --gid GID [OPTIONS] -- OPTIONS",
        "vivarium ctl --api-socket PATH VERB ...",
    ] {
        page.code(line);
    }
    page.section("DESCRIPTION");
    page.paragraph(
        "Runs a virtual machine on Linux KVM until the guest powers off or the process is asked to end. With --api-socket it serves a \
         REST API, by which the machine is looked at and changed while it runs; without --kernel as well, that makes the machine.",
    );
    page.section("OPTIONS");
    page.arguments(command.get_arguments());
    page.section("KEYS");
    page.paragraph(SYNTAX);
    for entry in ENTRIES {
        page.subsection(&format!("--{}", entry.name));
        page.keys(entry);
    }
    page.section("COMMANDS");
    for (name, about) in cli::COMMANDS {
        page.item(&format!("vivarium {name}"), &format!("{about} See vivarium-{name}(1)."));
    }
    page.item("vivarium help [COMMAND]", "Shows the help of a command, or that of the options.");
    page.items("EXIT STATUS", STATUSES);
    page.items("SIGNALS", SIGNALS);
    page.items("FILES", FILES);
    page.examples(&command.get_before_help().map(ToString::to_string).unwrap_or_default());
    page.see_also(&["vivarium-ctl(1)", "vivarium-jail(1)"])
}

fn jail(command: &Command) -> String {
    let mut page = Page::new("vivarium-jail", &about(command));
    page.section("SYNOPSIS");
    page.code("vivarium jail --id ID --uid UID --gid GID [OPTIONS] -- OPTIONS OF THE MACHINE");
    page.section("DESCRIPTION");
    page.paragraph(
        "The process that runs the machine has a root folder with nothing in it but the files that the machine's options name and \
         the devices it needs, namespaces and a control group of its own, and no capabilities. The process that was started makes \
         that, waits, passes signals on, and cleans up. Only root can make a jail. Paths are absolute.",
    );
    page.section("OPTIONS");
    page.arguments(command.get_arguments());
    page.items("EXIT STATUS", STATUSES);
    page.item("128+N", "Signal N ended the machine.");
    page.items("SIGNALS", SIGNALS);
    page.items("FILES", JAIL_FILES);
    page.examples(&command.get_after_help().map(ToString::to_string).unwrap_or_default());
    page.see_also(&["vivarium(1)", "cgroups(7)", "namespaces(7)"])
}

fn client(command: &Command, verbs: &[&Command]) -> String {
    let mut page = Page::new("vivarium-ctl", &about(command));
    page.section("SYNOPSIS");
    page.code("vivarium ctl --api-socket PATH [--json] VERB [ARGUMENTS]");
    page.section("OPTIONS");
    page.arguments(command.get_arguments());
    page.section("VERBS");
    page.paragraph("Each has a page of its own, such as vivarium-ctl-add-disk(1).");
    for verb in verbs {
        page.item(&cli::synopsis(verb), &about(verb));
    }
    page.items("EXIT STATUS", CLIENT_STATUSES);
    page.examples(&command.get_after_help().map(ToString::to_string).unwrap_or_default());
    page.see_also(&["vivarium(1)", "vivarium-jail(1)"])
}

fn verb(command: &Command) -> String {
    let name = command.get_name();
    let mut page = Page::new(&format!("vivarium-ctl-{name}"), &about(command));
    page.section("SYNOPSIS");
    let local = matches!(name, "completions" | "man");
    let socket = if local { "" } else { "--api-socket PATH " };
    page.code(&format!("vivarium ctl {socket}{}", cli::synopsis(command)));
    page.section("OPTIONS");
    page.arguments(command.get_arguments().filter(|argument| !argument.is_global_set()));
    if !local {
        page.arguments(command.get_arguments().filter(|argument| argument.is_global_set()));
    }
    let kind = ROUTES.iter().find(|route| super::verb(route) == name).map(|route| &route.serves);
    if let Some(Serves::Call(Takes::Body(kind, _))) = kind
        && let Some(fields) = keys_of(kind)
    {
        page.section("KEYS");
        page.paragraph(SYNTAX);
        let doc = option_of(kind).and_then(config_help::entry).map_or("", |entry| entry.doc);
        page.keys(&Entry { name: "", doc, fields, example: "" });
    }
    if let Some(remark) = command.get_after_help() {
        page.section("NOTES");
        page.paragraph(&remark.to_string());
    }
    page.items("EXIT STATUS", CLIENT_STATUSES);
    page.see_also(&["vivarium-ctl(1)", "vivarium(1)"])
}

/// Help that ends as a sentence does.
fn sentence(help: &str) -> String {
    if help.is_empty() || help.ends_with('.') { help.to_owned() } else { format!("{help}.") }
}

/// What a command does, as a sentence.
fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

/// A page that is being written.
struct Page(String);

impl Page {
    fn new(name: &str, about: &str) -> Self {
        let title = escaped(&name.to_uppercase());
        let (date, version) = (today(), env!("CARGO_PKG_VERSION"));
        let mut page = Self(format!(".TH \"{title}\" 1 \"{date}\" \"vivarium {version}\" \"Vivarium\"\n"));
        // Names of options and pages stay whole.
        page.line(".nh\n.ad l");
        page.section("NAME");
        // By its form, apropos(1) finds the page.
        page.line(&format!(
            "{} \\- {}",
            escaped(name),
            escaped(about.split(". ").next().unwrap_or_default().trim_end_matches('.'))
        ));
        page
    }

    /// A line that is escaped already.
    fn line(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn text(&mut self, text: &str) {
        let text = escaped(&text.replace('`', ""));
        // A line that starts so would be read as a request.
        let guard = if text.starts_with(['.', '\'']) { "\\&" } else { "" };
        self.line(&format!("{guard}{text}"));
    }

    fn section(&mut self, name: &str) {
        self.line(&format!(".SH \"{name}\""));
    }

    fn subsection(&mut self, name: &str) {
        self.line(&format!(".SS \"{}\"", escaped(name)));
    }

    fn paragraph(&mut self, text: &str) {
        self.line(".PP");
        self.text(text);
    }

    /// A line as it is written in a shell.
    fn code(&mut self, text: &str) {
        self.line(".PP\n.nf");
        self.text(text);
        self.line(".fi");
    }

    /// A word, and what it means.
    fn item(&mut self, word: &str, meaning: &str) {
        self.line(&format!(".TP\n\\fB{}\\fR", escaped(word)));
        self.text(meaning);
    }

    fn items(&mut self, section: &str, items: &[(&str, &str)]) {
        self.section(section);
        for (word, meaning) in items {
            self.item(word, meaning);
        }
    }

    fn arguments<'a>(&mut self, arguments: impl Iterator<Item = &'a Arg>) {
        for argument in arguments.filter(|argument| !argument.is_hide_set()) {
            let (flag, value) = shape(argument);
            let short = argument.get_short().filter(|_| argument.get_long().is_some());
            let short = short.map(|short| format!("\\fB\\-{short}\\fR, ")).unwrap_or_default();
            let flag = flag.map(|flag| format!("\\fB{}\\fR ", escaped(&flag))).unwrap_or_default();
            let value = value.map(|value| format!("\\fI{}\\fR", escaped(&value))).unwrap_or_default();
            self.line(&format!(".TP\n{}", format!("{short}{flag}{value}").trim_end()));
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let mut help = sentence(&help);
            let valid: Vec<_> = argument.get_possible_values();
            let valid: Vec<_> = valid.iter().map(clap::builder::PossibleValue::get_name).collect();
            if !valid.is_empty() && argument.get_action().takes_values() {
                help = format!("{help} It can be {}.", valid.join(", "));
            }
            let default: Vec<_> =
                argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
            if !default.is_empty() && argument.get_action().takes_values() {
                help = format!("{help} Default: {}.", default.join(" "));
            }
            self.text(help.trim());
        }
    }

    /// What an option with keys is for, an example, and its keys.
    fn keys(&mut self, entry: &Entry) {
        if !entry.doc.is_empty() {
            self.paragraph(entry.doc.trim());
        }
        if !entry.example.is_empty() {
            self.line(".RS 4");
            self.code(entry.example);
            self.line(".RE");
        }
        for field in entry.fields {
            self.line(&format!(".TP\n\\fB{}\\fR=\\fI{}\\fR", escaped(field.key), escaped(field.hint)));
            self.text(&config_help::remarks(field));
        }
    }

    /// Examples as `--help` shows them: what each does, indented by two, and its lines, by four.
    fn examples(&mut self, examples: &str) {
        self.section("EXAMPLES");
        let mut in_code = false;
        for line in examples.lines().skip(1).filter(|line| !line.is_empty()) {
            let code = line.strip_prefix("    ");
            if code.is_some() != in_code {
                self.line(if in_code { ".fi\n.RE" } else { ".RS 4\n.nf" });
                in_code = !in_code;
            }
            match code {
                Some(code) => self.text(code),
                None => self.paragraph(line.trim()),
            }
        }
        if in_code {
            self.line(".fi\n.RE");
        }
    }

    /// The last section.
    fn see_also(mut self, pages: &[&str]) -> String {
        self.section("SEE ALSO");
        self.text(&pages.join(", "));
        self.0
    }
}

/// Text with what roff(7) would not print as it is written.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '"' => escaped.push_str("\\(dq"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Today's date, as pages have it in their last line.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = date(seconds / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The year, month and day of the Gregorian calendar, so many days after 1 January 1970.
fn date(days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut left) = (1970, days);
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(name: &str) -> String {
        let found = pages().into_iter().find(|(file, _)| file == name);
        found.unwrap_or_else(|| panic!("there is no {name}")).1.replace("\\-", "-").replace("\\fR", "")
    }

    #[test]
    fn the_machines_page_has_every_option_every_key_and_what_a_process_needs_to_know() {
        let page = page("vivarium.1");
        for section in ["EXIT STATUS", "SIGNALS", "FILES", "EXAMPLES", "COMMANDS", "SEE ALSO"] {
            assert!(page.contains(&format!(".SH \"{section}\"")), "{section}");
        }
        for (flag, _, _) in cli::flags() {
            assert!(page.contains(&format!("\\fB{flag}")), "{flag}");
        }
        for entry in ENTRIES {
            let (_, keys) = page.split_once(&format!(".SS \"--{}\"", entry.name)).expect(entry.name);
            for field in entry.fields {
                assert!(keys.contains(&format!("\\fB{}=\\fI", field.key)), "{} {}", entry.name, field.key);
            }
        }
    }

    #[test]
    fn there_is_a_page_of_the_jail_and_of_each_verb_with_the_options_all_have() {
        assert!(page("vivarium-jail.1").contains("\\fB--netns \\fIPATH"));
        let ctl = super::super::command("vivarium ctl");
        for verb in verbs(&ctl).filter(|verb| !matches!(verb.get_name(), "man" | "completions")) {
            let page = page(&format!("vivarium-ctl-{}.1", verb.get_name()));
            assert!(page.contains("\\fB--api-socket \\fIPATH"), "{page}");
            assert!(!page.contains("[default"), "{page}");
        }
        assert!(page("vivarium-ctl-add-disk.1").contains("\\fBreadonly=\\fIon|off"));
    }

    #[test]
    fn no_line_is_read_as_a_request_that_is_none() {
        for (name, text) in pages() {
            for line in text.lines().filter(|line| line.starts_with(['.', '\''])) {
                let request = line.split(' ').next().unwrap_or_default();
                let known = [".TH", ".SH", ".SS", ".PP", ".TP", ".RS", ".RE", ".nf", ".fi", ".nh", ".ad"];
                assert!(known.contains(&request), "{name}: {line}");
            }
        }
    }

    #[test]
    fn days_are_dates() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(59), (1970, 3, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(20_453), (2025, 12, 31));
    }
}
