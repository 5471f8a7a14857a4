//! Owns the page of annotations.

use anyhow::Result;
use portway::model::Annotation;

use super::table::{code, table};

pub const INTRODUCTION: &str = "\
Annotations of objects that Portway reads. An annotation overrides the agent's flag for its object. A
Service whose annotation has another value than those below is left out, and log and `doctor` name the
field.";

/// Returns the table.
pub fn body() -> Result<String> {
    let rows = Annotation::ALL.iter().map(|annotation| {
        let values: Vec<String> = annotation
            .values
            .iter()
            .map(|(word, meaning)| format!("`{word}`: {meaning}"))
            .collect();
        [
            code(annotation.key),
            annotation.kind.name().to_owned(),
            format!("{}.", annotation.meaning),
            values.join("<br>"),
            code(annotation.flag.unwrap_or_default()),
        ]
    });
    Ok(table(
        ["Annotation", "Object", "Meaning", "Values", "Flag"],
        rows,
    ))
}
