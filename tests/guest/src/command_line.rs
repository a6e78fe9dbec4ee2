//! The command line: settings for all, then tasks separated by `;`.
//!
//! `out=e9 end=halt; hello; blk-randread qd=32 secs=2 root=/dev/vda` has one setting segment and two tasks. A task's
//! name is the first word of its segment that has no `=`. Words that nothing asks for are no error, because monitors
//! append words of their own.

/// A command line, kept as it came.
pub struct CommandLine<'a> {
    text: &'a str,
}

/// One segment with a task.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    /// Its name.
    pub name: &'a str,
    segment: &'a str,
}

impl<'a> CommandLine<'a> {
    /// Takes the whole text.
    pub fn new(text: &'a str) -> CommandLine<'a> {
        CommandLine { text }
    }

    /// The first value of `key` anywhere in the line.
    pub fn global(&self, key: &str) -> Option<&'a str> {
        value(self.text, key)
    }

    /// The same as a number.
    pub fn global_number(&self, key: &str) -> Option<u64> {
        self.global(key).and_then(number)
    }

    /// Every value of `key` in the line.
    pub fn global_values<'k>(&self, key: &'k str) -> impl Iterator<Item = &'a str> + use<'a, 'k> {
        values(self.text, key)
    }

    /// The tasks in their order.
    pub fn tasks(&self) -> impl Iterator<Item = Task<'a>> + use<'a> {
        self.text.split(';').filter_map(|segment| {
            let name = words(segment).find(|word| !word.contains('='))?;
            Some(Task { name, segment })
        })
    }
}

impl<'a> Task<'a> {
    /// The value of `key` in this task.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        value(self.segment, key)
    }

    /// The value of `key` as a number, or `default` if it is absent.
    ///
    /// # Errors
    /// `Err(Failure)` if the value is no number: a figure taken with another setting than asked for would mislead.
    pub fn number(&self, key: &'static str, default: u64) -> Result<u64, crate::tasks::Failure> {
        match self.text(key) {
            None => Ok(default),
            Some(text) => number(text).ok_or(crate::tasks::Failure::BadValue(key)),
        }
    }

    /// The value of a switch `key=0|1`, or `default` if it is absent.
    ///
    /// # Errors
    /// As for [`Task::number`].
    pub fn switch(&self, key: &'static str, default: bool) -> Result<bool, crate::tasks::Failure> {
        Ok(self.number(key, u64::from(default))? != 0)
    }
}

/// A number in decimal or, after `0x`, hexadecimal digits, with an optional suffix K, M or G (powers of 1024).
pub fn number(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let value = match digits.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16).ok()?,
        None => digits.parse().ok()?,
    };
    value.checked_mul(1 << shift)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', '\t', '\n', ';']).filter(|word| !word.is_empty())
}

fn values<'a, 'k>(text: &'a str, key: &'k str) -> impl Iterator<Item = &'a str> + use<'a, 'k> {
    words(text).filter_map(move |word| word.strip_prefix(key)?.strip_prefix('='))
}

fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    values(text, key).next()
}
