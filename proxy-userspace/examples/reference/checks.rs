//! Owns the page of the checks of `portway doctor`.

use anyhow::Result;
use portway::doctor::Check;

use super::table::{code, table};

pub const INTRODUCTION: &str = "\
`portway doctor` reads the objects and this host, and prints each finding with the object, its field,
what is wrong, the name of the check in brackets, and what to do about it. The names are stable. It ends
with status 0 if it finds nothing, 1 if it finds something, and 2 if it cannot look.";

/// Returns the table.
pub fn body() -> Result<String> {
    let rows = Check::ALL
        .iter()
        .map(|check| [code(check.name()), check.describe().to_owned()]);
    Ok(table(["Check", "Finding"], rows))
}
