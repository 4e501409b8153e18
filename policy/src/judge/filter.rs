//! Judging the values of parameters.

use std::borrow::Cow;
use std::sync::Arc;

use crate::json::{Call, Kind, Value};
use crate::patterns::Patterns;
use crate::profile::{Format, JSON_RPC, Profile};
use crate::tool::{FieldPath, Filter, MethodRules, RpcRules, Tool};
use crate::verdict::{Denial, DenialKind, Notes, Rule, Trace, shown};

/// The most values of one field: more recipients than any call has, and still judged in well under a millisecond.
const VALUES_MAX: usize = 512;

/// The longest path to a file: what Linux takes.
const PATH_BYTES_MAX: usize = 4096;

/// The deepest dotted path that is followed, which bounds the walk.
pub(crate) const PATH_DEPTH_MAX: usize = 8;

/// One call to be judged.
pub(super) struct Subject<'a> {
    pub(super) tool: &'a Tool,
    pub(super) rules: &'a RpcRules,
    pub(super) method: &'a str,
    members: Vec<Member<'a>>,
    params: Option<Value<'a>>,
}

/// One parameter.
struct Member<'a> {
    name: Cow<'a, str>,
    folded: String,
    value: Value<'a>,
}

impl Member<'_> {
    /// `null` and an empty array count as absent.
    fn is_present(&self) -> bool {
        match self.value.kind() {
            Kind::Null => false,
            Kind::Array => self.value.elements().next().is_some(),
            Kind::Boolean | Kind::Number | Kind::Object | Kind::String => true,
        }
    }
}

impl<'a> Subject<'a> {
    pub(super) fn new(tool: &'a Tool, rules: &'a RpcRules, call: &'a Call<'_>) -> Self {
        let profile = rules.profile.unwrap_or(&JSON_RPC);
        let members = call.members().map(|(name, value)| Member { folded: profile.fold(&name), name, value });
        Self { tool, rules, method: &call.method, members: members.collect(), params: call.params }
    }

    /// Judges every parameter; the rule that allowed, where one had to.
    /// `trials` is raised by how many times a pattern was tried on a value.
    pub(super) fn judge(
        &self,
        notes: &mut Notes,
        trace: &mut Trace,
        trials: &mut usize,
    ) -> Result<Option<Rule>, Box<Denial>> {
        let none = MethodRules::default();
        let rules = self.rules.methods.get(self.method).unwrap_or(&none);
        if self
            .params
            .is_some_and(|params| params.kind() == Kind::Array && params.elements().next().is_some())
        {
            self.judge_positional(rules)?;
        }
        self.judge_names(rules, trace)?;
        self.judge_files()?;
        self.judge_destinations(rules)?;
        let mut allowed = None;
        for filter in &rules.filters {
            allowed = self.judge_filter(filter, rules, notes, trace, trials)?.or(allowed);
        }
        Ok(allowed)
    }

    fn denial(&self, what: &str, rule: &Rule, reason: impl Into<String>) -> Box<Denial> {
        let said = format!("{}: `{}` was not carried out: {what}", self.tool.name, shown(self.method));
        Denial::new(DenialKind::Denied, said, rule.clone(), reason)
    }

    /// Parameters by position have no names to judge by.
    fn judge_positional(&self, rules: &MethodRules) -> Result<(), Box<Denial>> {
        let has_rules = !rules.filters.is_empty()
            || rules.allow_params.is_some()
            || self.rules.profile.is_some_and(|profile| !profile.files.is_empty());
        if !has_rules {
            return Ok(());
        }
        let rule = Rule::new(format!("{}: params", self.tool.name), 0);
        Err(self.denial(
            "its params must be an object",
            &rule,
            "params are an array, and rules name parameters",
        ))
    }

    fn judge_names(&self, rules: &MethodRules, trace: &mut Trace) -> Result<(), Box<Denial>> {
        let Some((names, rule)) = &rules.allow_params else { return Ok(()) };
        for member in &self.members {
            let is_listed = names.iter().any(|name| *name == member.name);
            trace.tried(rule, || {
                format!("`{}` is {}listed", shown(&member.name), if is_listed { "" } else { "not " })
            });
            if !is_listed {
                let what = format!("parameter `{}` is not allowed", shown(&member.name));
                return Err(self.denial(&what, rule, format!("`{}` is not listed", shown(&member.name))));
            }
        }
        Ok(())
    }

    /// A path in a parameter would be read from the host's disk.
    fn judge_files(&self) -> Result<(), Box<Denial>> {
        let Some(profile) = self.rules.profile else { return Ok(()) };
        for member in self.members.iter().filter(|member| profile.files.contains(&member.folded.as_str())) {
            let rule = || Rule::new(format!("{}: attachment_paths", self.tool.name), 0);
            let refuse = || {
                let what = format!("`{}` must be `data:` URIs", shown(&member.name));
                self.denial(
                    &what,
                    &rule(),
                    format!("`{}` names something else than data", shown(&member.name)),
                )
            };
            if !member.is_present() {
                continue;
            }
            for value in strings(member.value).map_err(|_| refuse())? {
                // Data may be megabytes long, and its beginning is enough; a path is short.
                if value.bytes().starts_with(b"\"data:") {
                    continue;
                }
                let path =
                    Some(value).filter(|value| value.bytes().len() <= PATH_BYTES_MAX).and_then(Value::as_str);
                if !path.is_some_and(|path| self.is_open_path(&path)) {
                    return Err(refuse());
                }
            }
        }
        Ok(())
    }

    fn is_open_path(&self, path: &str) -> bool {
        let is_plain = path.starts_with('/')
            && !path.contains('\0')
            && path.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."));
        let below = |dir: &String| {
            path.strip_prefix(dir.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'))
        };
        is_plain && self.rules.attachment_paths.iter().any(below)
    }

    /// Where one destination is filtered, every other must be, too, or be allowed by name: the call goes to all of them.
    fn judge_destinations(&self, rules: &MethodRules) -> Result<(), Box<Denial>> {
        let Some(profile) = self.rules.profile else { return Ok(()) };
        let is_filtered = |name: &str| rules.filters.iter().any(|filter| filter.covers(name));
        let Some(filter) = rules
            .filters
            .iter()
            .find(|filter| profile.destinations.iter().any(|destination| filter.covers(destination.name)))
        else {
            return Ok(());
        };
        for member in self.members.iter().filter(|member| member.is_present()) {
            let Some(destination) = profile.destination(&member.folded) else { continue };
            let is_allowed = rules
                .allow_params
                .as_ref()
                .is_some_and(|(names, _)| names.iter().any(|name| *name == member.name));
            let is_off = destination.format == Format::Flag && member.value.bytes() == b"false";
            if !is_filtered(destination.name) && !is_allowed && !is_off {
                let what = format!("`{}` is not an allowed destination", shown(&member.name));
                let reason = format!("`{}` has no filter of its own", shown(&member.name));
                return Err(self.denial(&what, &filter.rule, reason));
            }
        }
        Ok(())
    }

    fn judge_filter(
        &self,
        filter: &Filter,
        rules: &MethodRules,
        notes: &mut Notes,
        trace: &mut Trace,
        trials: &mut usize,
    ) -> Result<Option<Rule>, Box<Denial>> {
        let mut found = Vec::new();
        for path in &filter.fields {
            self.collect(path, &mut found).map_err(|what| self.unjudgeable(filter, what))?;
        }
        if found.is_empty() {
            let is_met = !filter.is_required || self.has_other_destination(filter, rules);
            trace.tried(&filter.rule, || format!("absent, {}", if is_met { "allowed" } else { "denied" }));
            if is_met {
                return Ok(None);
            }
            let what = format!("`{}` is missing", filter.label);
            return Err(self.denial(&what, &filter.rule, "the field is absent and required"));
        }
        let mut texts = Vec::with_capacity(found.len());
        for value in found {
            texts.push(value.as_str().ok_or_else(|| self.unjudgeable(filter, "is not text"))?);
        }
        if let Some(name) = &filter.audit_as {
            texts.iter().for_each(|text| notes.add_param(name, text));
        }
        *trials += texts.len() * (1 + filter.allow.len() + filter.deny.len());
        let mut allowed = None;
        for text in &texts {
            allowed = Some(self.judge_value(filter, text, trace)?);
        }
        Ok(allowed)
    }

    fn unjudgeable(&self, filter: &Filter, what: &str) -> Box<Denial> {
        let said = format!("`{}` must be a string or a list of strings", filter.label);
        self.denial(&said, &filter.rule, format!("a value of `{}` {what}", filter.label))
    }

    /// A destination may be given by any member of its family.
    fn has_other_destination(&self, filter: &Filter, rules: &MethodRules) -> bool {
        let Some(profile) = self.rules.profile else { return false };
        if !profile.destinations.iter().any(|destination| filter.covers(destination.name)) {
            return false;
        }
        let is_judged = |member: &Member<'_>| {
            profile.destination(&member.folded).is_some_and(|destination| destination.format != Format::Flag)
                && rules.filters.iter().any(|other| other.covers(&member.folded))
        };
        self.members.iter().any(|member| member.is_present() && is_judged(member))
    }

    fn judge_value(&self, filter: &Filter, text: &str, trace: &mut Trace) -> Result<Rule, Box<Denial>> {
        if let Some(format) = filter.format
            && let Err(wanted) = format.check(text)
        {
            trace.tried(&filter.rule, || format!("`{}` {wanted}", shown(text)));
            let what = format!("`{}` {wanted}", filter.label);
            return Err(self.denial(&what, &filter.rule, format!("`{}` {wanted}", shown(text))));
        }
        let what = || format!("`{}` is not an allowed {}", filter.label, filter.noun);
        // Usernames mean the same in either case, so a deny pattern must meet both.
        let folds = matches!(filter.format, Some(Format::Recipient | Format::Username));
        trace_all(&filter.deny, text, folds, trace);
        let denied = if folds {
            filter.deny.find_ignoring_case(text.as_bytes())
        } else {
            filter.deny.find(text.as_bytes())
        };
        if let Some(pattern) = denied {
            let reason = format!("`{}` matches a deny pattern", shown(text));
            return Err(self.denial(&what(), &pattern.rule, reason));
        }
        trace_all(&filter.allow, text, false, trace);
        if let Some(pattern) = filter.allow.find(text.as_bytes()) {
            return Ok(pattern.rule.clone());
        }
        Err(self.denial(&what(), &filter.rule, format!("`{}` matches no allow pattern", shown(text))))
    }

    /// The strings at a path, every element of every array on the way. `null` and an empty array count as absent.
    fn collect(&self, path: &FieldPath, found: &mut Vec<Value<'a>>) -> Result<(), &'static str> {
        let Some((first, rest)) = path.0.split_first() else { return Ok(()) };
        let profile = self.rules.profile.unwrap_or(&JSON_RPC);
        for member in self.members.iter().filter(|member| member.folded == *first) {
            collect_below(profile, member.value, rest, found)?;
        }
        Ok(())
    }
}

/// Notes every pattern and whether it matches, where somebody wants to know.
pub(super) fn trace_all(patterns: &Patterns, text: &str, ignores_case: bool, trace: &mut Trace) {
    if !trace.is_on() {
        return;
    }
    for pattern in patterns.iter() {
        let is_hit = pattern.glob.matches(text.as_bytes())
            || ignores_case && pattern.glob.matches_ignoring_case(text.as_bytes());
        let verb = if is_hit { "matches" } else { "does not match" };
        trace.tried(&pattern.rule, || format!("{verb} `{}`", shown(text)));
    }
}

/// Whether every filter lets an event pass; the rule that does not.
pub(super) fn passes<'f>(
    profile: &Profile,
    filters: impl IntoIterator<Item = &'f Filter>,
    event: Value<'_>,
) -> Result<(), Rule> {
    for filter in filters {
        let mut found = Vec::new();
        for path in &filter.fields {
            collect_below(profile, event, &path.0, &mut found).map_err(|_| filter.rule.clone())?;
        }
        if found.is_empty() && filter.is_required {
            return Err(filter.rule.clone());
        }
        for value in found {
            let text = value.as_str().ok_or_else(|| filter.rule.clone())?;
            if let Some(pattern) = filter.deny.find(text.as_bytes()) {
                return Err(pattern.rule.clone());
            }
            filter.allow.find(text.as_bytes()).ok_or_else(|| filter.rule.clone())?;
        }
    }
    Ok(())
}

/// The strings of a value that is one or an array of them.
fn strings<'a>(value: Value<'a>) -> Result<Vec<Value<'a>>, &'static str> {
    let mut found = Vec::new();
    collect_below(&JSON_RPC, value, &[], &mut found)?;
    Ok(found)
}

fn collect_below<'a>(
    profile: &Profile,
    value: Value<'a>,
    path: &[String],
    found: &mut Vec<Value<'a>>,
) -> Result<(), &'static str> {
    match (value.kind(), path.split_first()) {
        (Kind::Null, _) => Ok(()),
        (Kind::Array, _) => {
            for element in value.elements() {
                // An array in an array is no list of strings; following it would also need a stack as deep as the text.
                if element.kind() == Kind::Array || path.is_empty() && element.kind() != Kind::String {
                    return Err("is not text");
                }
                collect_below(profile, element, path, found)?;
            }
            Ok(())
        }
        (Kind::Object, Some((first, rest))) => {
            for (key, inner) in value.members() {
                let is_it = crate::json::unescape(key).is_some_and(|key| profile.fold(&key) == *first);
                if is_it {
                    collect_below(profile, inner, rest, found)?;
                }
            }
            Ok(())
        }
        (Kind::String, None) if found.len() < VALUES_MAX => {
            found.push(value);
            Ok(())
        }
        (Kind::String, None) => Err("is one of more than 512"),
        (Kind::Object | Kind::String | Kind::Boolean | Kind::Number, _) => Err("is not text"),
    }
}

/// The names a filter is known by in records, where the policy gives none.
pub(crate) fn default_audit_name(profile: Option<&Profile>, folded: &str) -> Option<Arc<str>> {
    profile?.destination(folded)?.audit_as.map(Arc::from)
}
