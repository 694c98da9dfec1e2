//! A TOML table read key by key: every value parsed into its type, everything that is wrong collected, not only the
//! first of it.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use toml::{Table, Value};

/// A table that is read key by key, collecting what is wrong.
pub(super) struct Reader {
    pub(super) table: Table,
    place: String,
    pub(super) problems: Vec<String>,
}

impl Reader {
    /// Reads `table`; `place` is what its keys are told with.
    pub(super) fn new(table: Table, place: &str) -> Self {
        Self { table, place: place.to_owned(), problems: Vec::new() }
    }

    pub(super) fn problem(&mut self, key: &str, what: &str) {
        self.problems.push(format!("{}{key}: {what}", self.place));
    }

    pub(super) fn optional(&mut self, key: &str) -> Option<String> {
        match self.table.remove(key)? {
            Value::String(text) => Some(text),
            _ => {
                self.problem(key, "must be a text");
                None
            }
        }
    }

    pub(super) fn required(&mut self, key: &str) -> Option<String> {
        if !self.table.contains_key(key) {
            self.problem(key, "is missing");
        }
        self.optional(key)
    }

    pub(super) fn text(&mut self, key: &str, default: &str) -> String {
        self.optional(key).unwrap_or_else(|| default.to_owned())
    }

    pub(super) fn parsed<T: FromStr>(&mut self, key: &str, text: &str) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(key, &T::Err::to_string(&error));
                None
            }
        }
    }

    pub(super) fn absolute(&mut self, key: &str, path: String) -> PathBuf {
        let path = PathBuf::from(path);
        if !path.is_absolute() {
            self.problem(key, &format!("{} must be an absolute path", path.display()));
        }
        path
    }

    pub(super) fn path(&mut self, key: &str, default: &str) -> PathBuf {
        let path = self.text(key, default);
        self.absolute(key, path)
    }

    pub(super) fn paths(&mut self, key: &str, default: &[&str]) -> Vec<PathBuf> {
        let Some(texts) = self.list(key) else { return default.iter().map(PathBuf::from).collect() };
        if texts.is_empty() {
            self.problem(key, "must be a list of one or more paths");
        }
        if texts.iter().any(|text| text == "/") {
            self.problem(key, "/ would let every path pass");
        }
        texts.into_iter().map(|text| self.absolute(key, text)).collect()
    }

    pub(super) fn list(&mut self, key: &str) -> Option<Vec<String>> {
        let values = match self.table.remove(key)? {
            Value::Array(values) => values,
            _ => {
                self.problem(key, "must be a list of texts");
                return Some(Vec::new());
            }
        };
        let texts = values.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect::<Vec<_>>();
        if texts.len() < values.len() {
            self.problem(key, "must hold texts only");
        }
        Some(texts)
    }

    pub(super) fn flag(&mut self, key: &str) -> bool {
        match self.table.remove(key) {
            None => false,
            Some(Value::Boolean(flag)) => flag,
            Some(_) => {
                self.problem(key, "must be true or false");
                false
            }
        }
    }

    pub(super) fn number(&mut self, key: &str, default: u32, least: u32, most: u32) -> u32 {
        match self.table.remove(key) {
            None => default,
            Some(Value::Integer(number)) if (i64::from(least)..=i64::from(most)).contains(&number) => {
                u32::try_from(number).unwrap_or(default)
            }
            Some(_) => {
                self.problem(key, &format!("must be a whole number from {least} to {most}"));
                default
            }
        }
    }

    pub(super) fn duration(&mut self, key: &str, default: Duration, most: Duration) -> Duration {
        let Some(text) = self.optional(key) else { return default };
        match humantime::parse_duration(&text) {
            Ok(duration) if !duration.is_zero() && duration <= most => duration,
            _ => {
                let most = humantime::format_duration(most);
                self.problem(key, &format!("must be a time such as \"5s\", at most {most}"));
                default
            }
        }
    }

    /// What is left over is unknown.
    pub(super) fn finish(mut self) -> Vec<String> {
        let unknown: Vec<String> = self.table.keys().cloned().collect();
        for key in unknown {
            self.problem(&key, "is not a known key");
        }
        self.problems
    }
}
