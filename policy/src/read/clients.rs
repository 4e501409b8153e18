//! `clients`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::fields::{Fields, Reader};
use super::tables::CLIENT;
use super::yaml::Node;
use crate::caller::{Client, Who};
use crate::tool::Tool;

pub(super) fn read(reader: &Reader<'_>, node: Node, tools: &BTreeMap<Arc<str>, Arc<Tool>>) -> Vec<Client> {
    reader.list(node).into_iter().filter_map(|node| read_client(reader, node, tools)).collect()
}

fn read_client(reader: &Reader<'_>, node: Node, tools: &BTreeMap<Arc<str>, Arc<Tool>>) -> Option<Client> {
    let mut fields = reader.fields(node, &CLIENT);
    let who = read_who(&mut fields);
    let mut names = Vec::new();
    let mut is_every = false;
    match fields.take("tools") {
        None => reader.error(fields.at, "a client needs `tools`; [\"*\"] is all of them"),
        Some((_, node)) => {
            for name in reader.texts(node) {
                if name.text == "*" {
                    is_every = true;
                } else if let Some((known, _)) = tools.get_key_value(name.text.as_str()) {
                    names.push(known.clone());
                } else {
                    reader.error(name.at, format!("there is no tool `{}`", name.text));
                }
            }
        }
    }
    fields.finish();
    Some(Client { who: who?, tools: if is_every { None } else { Some(names) } })
}

fn read_who(fields: &mut Fields<'_, '_>) -> Option<Who> {
    let id = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let mut found = Vec::new();
    if let Some(agent) = fields.text("agent") {
        found.push(if agent.text == "*" { Who::AnyAgent } else { Who::Agent(agent.text) });
    }
    found.extend(fields.number("gid").map(|gid| Who::Gid(id(gid))));
    found.extend(fields.text("group").map(|group| Who::Group(group.text)));
    found.extend(fields.number("uid").map(|uid| Who::Uid(id(uid))));
    found.extend(fields.text("user").map(|user| Who::User(user.text)));
    if found.len() != 1 {
        fields.reader().error(fields.at, "a client is exactly one of agent, uid, gid, user, group");
        return None;
    }
    found.pop()
}
