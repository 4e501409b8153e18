//! What was measured, as a table for people or as JSON.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::thread;

use serde_json::{Value, json};

use crate::stats::size;

/// What a figure is to reach.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// Our figure, at least.
    AtLeast(f64),
    /// Our figure, at most.
    AtMost(f64),
    /// Nothing: it is printed to be known.
    Known,
    /// Ours divided by the others', at least.
    RatioAtLeast(f64),
    /// Ours divided by the others', at most.
    RatioAtMost(f64),
}

/// One figure, ours beside that of others.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// What was measured, with its unit.
    pub(crate) what: String,
    /// Carapace.
    pub(crate) ours: Option<f64>,
    /// Those we are compared with.
    pub(crate) theirs: Option<f64>,
    /// With nothing in between.
    pub(crate) direct: Option<f64>,
    /// What it is to reach.
    pub(crate) goal: Goal,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.ours.zip(self.theirs).filter(|(_, theirs)| *theirs != 0.0).map(|(ours, theirs)| ours / theirs)
    }

    /// Whether the goal was reached; `None` where there is none, or nothing to compare.
    fn is_reached(&self) -> Option<bool> {
        match self.goal {
            Goal::AtLeast(least) => self.ours.map(|ours| ours >= least),
            Goal::AtMost(most) => self.ours.map(|ours| ours <= most),
            Goal::Known => None,
            Goal::RatioAtLeast(least) => self.ratio().map(|ratio| ratio >= least),
            Goal::RatioAtMost(most) => self.ratio().map(|ratio| ratio <= most),
        }
    }

    fn goal_text(&self) -> String {
        let goal = match self.goal {
            Goal::AtLeast(least) => format!(">= {}", number(least)),
            Goal::AtMost(most) => format!("<= {}", number(most)),
            Goal::Known => return String::new(),
            Goal::RatioAtLeast(least) => format!(">= {least} x"),
            Goal::RatioAtMost(most) => format!("<= {most} x"),
        };
        match self.is_reached() {
            Some(true) => format!("{goal}  reached"),
            Some(false) => format!("{goal}  missed"),
            None => goal,
        }
    }

    fn json(&self, group: &Group) -> Value {
        json!({
            "group": group.title, "what": self.what, "carapace": self.ours, "against": group.against,
            "theirs": self.theirs, "direct": self.direct, "ratio": self.ratio(), "reached": self.is_reached(),
        })
    }
}

/// Rows that belong together.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    /// What they are about.
    pub(crate) title: String,
    /// With what we are compared.
    pub(crate) against: &'static str,
    /// The rows.
    pub(crate) rows: Vec<Row>,
}

impl Group {
    fn table(&self) -> String {
        let cell = |value: Option<f64>| value.map(number).unwrap_or_default();
        let mut text = format!(
            "\n{:<44} {:>12} {:>12} {:>7} {:>12}  goal\n",
            self.title, "carapace", self.against, "ratio", "direct"
        );
        for row in &self.rows {
            let ratio = row.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
            let (ours, theirs, direct) = (cell(row.ours), cell(row.theirs), cell(row.direct));
            let line = format!(
                "  {:<42} {ours:>12} {theirs:>12} {ratio:>7} {direct:>12}  {}",
                row.what,
                row.goal_text()
            );
            // Writing to a string does not fail.
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

/// Three digits that count, and thousands apart.
fn number(value: f64) -> String {
    let size = value.abs();
    if size < 10.0 {
        return format!("{value:.2}");
    }
    if size < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Prints a group on standard output, as soon as it is measured.
pub(crate) fn print(group: &Group, is_json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if is_json {
        group.rows.iter().try_for_each(|row| writeln!(out, "{}", row.json(group)))?;
    } else {
        out.write_all(group.table().as_bytes())?;
    }
    out.flush()
}

/// Prints what the figures were measured on, and says when it has other things to do.
pub(crate) fn print_machine(is_json: bool) -> io::Result<()> {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let cpu = read("/proc/cpuinfo").lines().find_map(|line| {
        let (_, name) = line.strip_prefix("model name")?.split_once(':')?;
        Some(name.trim().to_owned())
    });
    let cpu = cpu.unwrap_or_else(|| "a processor without a name".to_owned());
    let cores = thread::available_parallelism()?.get();
    let load =
        read("/proc/loadavg").split(' ').next().and_then(|load| load.parse::<f64>().ok()).unwrap_or(0.0);
    let mut out = io::stdout().lock();
    if is_json {
        writeln!(out, "{}", json!({ "kernel": kernel, "cpu": cpu, "cores": cores, "load": load }))?;
    } else {
        writeln!(out, "{cores} cores of {cpu}, Linux {kernel}, load {load}")?;
    }
    if load * 4.0 > size(cores) {
        tell(&format!("this machine is busy (load {load} on {cores} cores): times and rates mean little"));
    }
    out.flush()
}

/// Says on standard error what is going on.
pub(crate) fn tell(what: &str) {
    // Progress that cannot be shown is not worth ending a measurement for.
    let _ = writeln!(io::stderr(), "carapace-bench: {what}");
}

#[cfg(test)]
mod tests {
    use super::{Goal, Row, number};

    #[test]
    fn numbers_are_short() {
        let shown: Vec<_> = [0.1234, 12.34, 123.4, 1234.5, 1_234_567.0].map(number).into();
        assert_eq!(shown, ["0.12", "12.3", "123", "1,234", "1,234,567"]);
    }

    #[test]
    fn goals_are_judged() {
        let row = |ours, theirs, goal| Row { what: String::new(), ours, theirs, direct: None, goal };
        assert_eq!(row(Some(3.0), Some(2.0), Goal::RatioAtLeast(1.5)).is_reached(), Some(true));
        assert_eq!(row(Some(3.0), None, Goal::RatioAtLeast(1.5)).is_reached(), None);
        assert_eq!(row(Some(3.0), None, Goal::AtMost(2.0)).is_reached(), Some(false));
    }
}
