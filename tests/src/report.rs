//! What the bare-metal guest reports: lines of `@@ TASK KEY=VALUE...`.

/// The lines of a guest.
#[derive(Debug)]
pub struct Report(Vec<Line>);

/// One line.
#[derive(Debug)]
pub struct Line {
    /// The task.
    pub task: String,
    words: Vec<(String, String)>,
}

impl Report {
    /// Reads what a guest printed; what else is in it is left out.
    pub fn new(output: &str) -> Self {
        Self(output.lines().filter_map(Line::new).collect())
    }

    /// The lines of a task.
    pub fn of<'a>(&'a self, task: &'a str) -> impl Iterator<Item = &'a Line> {
        self.0.iter().filter(move |line| line.task == task)
    }

    /// A number that the one line of a task that has the key tells.
    ///
    /// # Panics
    /// When no line, or more than one, has it.
    pub fn number(&self, task: &str, key: &str) -> u64 {
        let found: Vec<_> = self.of(task).filter_map(|line| line.get(key)).collect();
        let [value] = found.as_slice() else { panic!("{task} told {key} {} times: {self:?}", found.len()) };
        value.parse().unwrap_or_else(|_| panic!("{task} told {key}={value}, which is no number"))
    }
}

impl Line {
    fn new(text: &str) -> Option<Self> {
        let mut words = text.trim().strip_prefix("@@ ")?.split_whitespace();
        let task = words.next()?.to_owned();
        let words = words.filter_map(|word| word.split_once('='));
        Some(Self { task, words: words.map(|(key, value)| (key.to_owned(), value.to_owned())).collect() })
    }

    /// What the line says of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.words.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_by_task_and_key() {
        let report = Report::new("noise\n@@ irq kind=self n=100\r\n@@ irq kind=halt wakes=7\n@@ done rc=0\n");
        assert_eq!(
            report.of("irq").filter_map(|line| line.get("kind")).collect::<Vec<_>>(),
            ["self", "halt"]
        );
        assert_eq!((report.number("irq", "wakes"), report.number("done", "rc")), (7, 0));
    }
}
