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
}

impl<T> Setting<T> {
    /// The flag or the variable that an error about this value has to name.
    pub const fn name(&self) -> &'static str {
        match self.origin {
            Origin::Environment => self.variable,
            Origin::Default | Origin::Flag => self.flag,
        }
    }

    /// An error about this value: of usage where it was a flag, else of configuration.
    pub(crate) fn wrong(&self, what: impl fmt::Display) -> Fatal {
        let exit = match self.origin {
            Origin::Flag => Exit::Usage,
            Origin::Default | Origin::Environment => Exit::Config,
        };
        Fatal::new(exit, format!("{}: {what}", self.name()))
    }

    pub(super) fn row<S: Into<String>>(&self, show: impl FnOnce(&T) -> S) -> Row {
        let origin = match self.origin {
            Origin::Default => "default",
            Origin::Environment => self.variable,
            Origin::Flag => self.flag,
        };
        (self.flag.trim_start_matches('-'), show(&self.value).into(), origin.to_owned())
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
        let setting = Setting { value: (), origin, flag, variable };
        match parse(text) {
            Ok(value) => Ok(Setting { value, origin, flag, variable }),
            Err(expected) => Err(setting.wrong(format_args!("`{text}` is not {expected}"))),
        }
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
