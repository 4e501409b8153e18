//! One value of the configuration.

use super::Row;
use crate::exit::{Exit, Fatal};
use std::env;
use std::ffi::OsString;
use std::fmt;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// An environment variable.
    Environment,
    /// The command line.
    Flag,
}

/// A value, and where it comes from.
#[derive(Clone, Debug)]
pub struct Setting<T> {
    /// What is in force.
    pub value: T,
    /// Where it comes from.
    pub origin: Origin,
    flag: &'static str,
    variable: &'static str,
    /// What it is called where all are listed.
    label: &'static str,
}

impl<T> Setting<T> {
    /// An error about this value.
    pub(crate) fn wrong(&self, what: fmt::Arguments<'_>) -> Fatal {
        wrong(self.origin, self.flag, self.variable, what)
    }

    /// Under another name where all are listed: one flag may give several.
    pub(super) fn labelled(self, label: &'static str) -> Self {
        Self { label, ..self }
    }

    pub(super) fn row<S: Into<String>>(&self, show: impl FnOnce(&T) -> S) -> Row {
        let origin = match self.origin {
            Origin::Default => "default",
            Origin::Environment => self.variable,
            Origin::Flag => self.flag,
        };
        (self.label, show(&self.value).into(), origin.to_owned())
    }
}

/// Environment variables by name.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The environment of this process.
pub(crate) fn process_environment(name: &str) -> Option<OsString> {
    env::var_os(name)
}

/// Reads settings.
pub(super) struct Reader<'a> {
    pub(super) environment: Environment<'a>,
}

impl Reader<'_> {
    /// Reads a setting whose default is written like a value. `parse` fails with what it would have accepted.
    pub(super) fn read<T>(
        &self,
        flag: &'static str,
        given: Option<&str>,
        variable: &'static str,
        default: &str,
        parse: impl Fn(&str) -> Result<T, &'static str>,
    ) -> Result<Setting<T>, Fatal> {
        let from_environment = if given.is_some() { None } else { self.variable(variable)? };
        let (text, origin) = match (given, &from_environment) {
            (Some(text), _) => (text, Origin::Flag),
            (None, Some(text)) => (text.as_str(), Origin::Environment),
            (None, None) => (default, Origin::Default),
        };
        let setting = |value| Setting { value, origin, flag, variable, label: flag.trim_start_matches('-') };
        parse(text).map(setting).map_err(|expected| {
            let what = format_args!("`{text}` is not {expected}");
            wrong(origin, flag, variable, what)
        })
    }

    /// Reads a setting that is on or off, and off by default.
    pub(super) fn switch(
        &self,
        flag: &'static str,
        given: bool,
        variable: &'static str,
    ) -> Result<Setting<bool>, Fatal> {
        self.read(flag, given.then_some("true"), variable, "false", |text| match text {
            "1" | "on" | "true" | "yes" => Ok(true),
            "0" | "false" | "no" | "off" => Ok(false),
            _ => Err("true or false"),
        })
    }

    /// A variable that is empty counts as absent: that is how a unit file takes one back.
    pub(super) fn variable(&self, name: &'static str) -> Result<Option<String>, Fatal> {
        match (self.environment)(name).map(OsString::into_string).transpose() {
            Ok(text) => Ok(text.filter(|text| !text.is_empty())),
            Err(_) => Err(Fatal::new(Exit::Config, format!("{name}: it is not UTF-8"))),
        }
    }
}

/// An error of usage where the value was a flag, else of configuration. Names the flag or the variable.
fn wrong(origin: Origin, flag: &str, variable: &str, what: fmt::Arguments<'_>) -> Fatal {
    match origin {
        Origin::Environment => Fatal::new(Exit::Config, format!("{variable}: {what}")),
        Origin::Default => Fatal::new(Exit::Config, format!("{flag}: {what}")),
        Origin::Flag => Fatal::new(Exit::Usage, format!("{flag}: {what}")),
    }
}
