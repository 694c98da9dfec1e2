//! What a command prints: data on standard output, talk on standard error.

use std::io::{IsTerminal, Write};

use comfy_table::{Table, presets};
use serde_json::Value;

use super::Output;
use crate::error::{Doing, Result};

/// Says something to the person at the terminal.
pub(super) fn talk(text: &str) {
    // Nobody to tell where even this fails.
    writeln!(std::io::stderr(), "{text}").unwrap_or_default();
}

/// Prints a line of data.
pub(super) fn line(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        // Whoever reads has seen enough, such as `head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.doing(|| "print"),
    }
}

/// Rows of named columns, as a table or as JSON objects.
pub(super) struct Rows {
    columns: &'static [&'static str],
    rows: Vec<Vec<Value>>,
}

impl Rows {
    pub(super) const fn new(columns: &'static [&'static str]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row with a value for each column.
    pub(super) fn add<const N: usize>(&mut self, values: [Value; N]) {
        self.rows.push(values.into());
    }

    /// All of them, as JSON objects.
    pub(super) fn json(&self) -> String {
        let object = |row: &Vec<Value>| -> Value {
            let fields = self.columns.iter().zip(row);
            Value::Object(fields.map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
        };
        format!("{:#}", Value::Array(self.rows.iter().map(object).collect()))
    }

    /// Prints all of them.
    pub(super) fn print(&self, output: Output) -> Result<()> {
        match output {
            Output::Json => line(&self.json()),
            Output::Table => {
                let mut table = Table::new();
                table.load_style(presets::NOTHING);
                table.set_header(self.columns.iter().map(|column| column.to_uppercase().replace('_', " ")));
                for row in &self.rows {
                    table.add_row(row.iter().map(show));
                }
                let text = table.to_string();
                text.lines().try_for_each(|row| line(row.trim_end()))
            }
        }
    }
}

/// A value as people read it.
fn show(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(show).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// A size: a number for programs, with a unit for people.
pub(super) fn size(bytes: i64, output: Output) -> Value {
    match (output, crate::bytes::Bytes::try_from(bytes)) {
        (Output::Table, Ok(size)) => size.to_string().into(),
        _ => bytes.into(),
    }
}

/// Asks before something is destroyed: `--yes`, or a terminal and the word.
pub(super) fn confirmed(plan: &str, yes: bool) -> bool {
    talk(plan);
    if yes {
        return true;
    }
    if !std::io::stdin().is_terminal() {
        talk("nothing done: say --yes to do it");
        return false;
    }
    talk("type yes to go on:");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && answer.trim() == "yes"
}
