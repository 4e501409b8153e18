//! `content_filters`.

use std::sync::Arc;

use super::fields::Reader;
use super::tables::CONTENT_FILTER;
use super::yaml::Node;
use crate::content::ContentFilter;
use crate::verdict::Rule;

/// The most content filters: each is run over everything that goes out.
const FILTERS_MAX: usize = 32;

pub(super) fn read(reader: &Reader<'_>, node: Node) -> Arc<[ContentFilter]> {
    let at = node.at;
    let list = reader.list(node);
    if list.len() > FILTERS_MAX {
        reader.error(at, "there are more than 32 content filters");
    }
    list.into_iter().enumerate().filter_map(|(i, node)| read_filter(reader, i, node)).collect()
}

fn read_filter(reader: &Reader<'_>, index: usize, node: Node) -> Option<ContentFilter> {
    let mut fields = reader.fields(node, &CONTENT_FILTER);
    let at = fields.at;
    let (pattern, action) = (fields.text("pattern"), fields.choice("action"));
    fields.finish();
    let (Some(pattern), Some(action)) = (pattern, action) else {
        reader.error(at, "a content filter needs a `pattern` and an `action`");
        return None;
    };
    let rule = Rule::new(format!("content_filters[{index}]"), at.line);
    match ContentFilter::new(&pattern.text, action == "block", rule) {
        Ok(filter) => Some(filter),
        Err(what) => {
            reader.error(pattern.at, format!("the expression `{}` cannot be used: {what}", pattern.text));
            None
        }
    }
}
