//! The records of a pool as text: a header, a line of JSON for each record, and a last line that tells a whole copy from a
//! torn one. Of any kind of record and any kind of pool: what a line means is known to the pool that wrote it.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::record::Timestamp;
use crate::{
    error::{Error, ErrorKind, Result},
    id::PoolId,
};

const VERSION: u32 = 1;

/// Which pool a backup is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the form.
    lagan_backup: u32,
    /// The pool's identity.
    pub pool: PoolId,
    /// The machine that it belonged to.
    pub machine: String,
    /// When the backup was made.
    pub taken: Timestamp,
    /// What lies where, for a pool on a disk of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Value>,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// What it is of, such as `volume`.
    pub kind: String,
    /// Number of its thin device, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thin: Option<u32>,
    /// When that was made, in the pool's own count: another device of the same number would differ in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<u32>,
    /// The record itself.
    pub record: Value,
}

/// The last line.
#[derive(Debug, Serialize, Deserialize)]
struct End {
    /// How many records there are.
    records: usize,
}

/// All records of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Backup {
    /// Which pool it is of.
    pub header: Header,
    /// The records.
    pub lines: Vec<Line>,
    /// What could not be read, and is missing.
    pub missing: Vec<String>,
}

/// What a restore did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Records written.
    pub written: usize,
    /// Records that were there, and the same.
    pub kept: usize,
    /// What was left out, and why.
    pub skipped: Vec<String>,
}

/// A record that is there and says something else.
pub(super) fn refuse_different(different: &[String]) -> Result<()> {
    if different.is_empty() {
        return Ok(());
    }
    let shown = different.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
    let what = format!(
        "{} records are there and say something else than the backup ({shown}): they are likely later ones. \
         --replace puts those of the backup in their place; nothing was changed",
        different.len()
    );
    Err(Error::new(ErrorKind::Mismatch, what))
}

fn unreadable(line: usize, why: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, format!("line {line} of the backup: {why}"))
}

fn parse<T: DeserializeOwned>(index: usize, line: &str) -> Result<T> {
    serde_json::from_str(line).map_err(|error| unreadable(index + 1, &error))
}

impl Line {
    /// A line for something that serializes as a record.
    pub(super) fn of(kind: &str, record: &impl Serialize) -> Result<Self> {
        let record = serde_json::to_value(record)
            .map_err(|error| Error::new(ErrorKind::Broken, "write a record as text").because(error))?;
        Ok(Self { kind: kind.to_owned(), thin: None, time: None, record })
    }

    /// The record, as what its kind says.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(self.record.clone()).map_err(|error| {
            Error::new(ErrorKind::Invalid, format!("the backup's {}", self.title())).because(error)
        })
    }

    /// What a person knows it by.
    #[must_use]
    pub fn title(&self) -> String {
        let field = |name: &str| self.record.get(name).and_then(Value::as_str);
        let known = field("id").or_else(|| field("uuid")).unwrap_or_default();
        let name = field("name").unwrap_or_default();
        format!("{} {known} ({name})", self.kind)
    }

    /// Refuses a record of another pool.
    fn expect_of(&self, pool: PoolId) -> Result<()> {
        let id = self.record.get("id").and_then(Value::as_str);
        if id.is_some_and(|id| id.split('.').nth(1) != Some(&pool.to_string())) {
            let what = format!("the backup's {} is of another pool than {pool}", self.title());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok(())
    }
}

impl Backup {
    pub(super) fn new(pool: PoolId, machine: &str) -> Self {
        let (machine, taken) = (machine.to_owned(), Timestamp::now());
        let header = Header { lagan_backup: VERSION, pool, machine, taken, disk: None };
        Self { header, lines: Vec::new(), missing: Vec::new() }
    }

    /// The text.
    ///
    /// # Errors
    /// `Broken` where something has no form as text.
    pub fn to_text(&self) -> Result<String> {
        let broken = |error| Error::new(ErrorKind::Broken, "write the records as text").because(error);
        let mut text = serde_json::to_string(&self.header).map_err(broken)?;
        for line in &self.lines {
            text.push('\n');
            text.push_str(&serde_json::to_string(line).map_err(broken)?);
        }
        let end = serde_json::to_string(&End { records: self.lines.len() }).map_err(broken)?;
        Ok(text + "\n" + &end + "\n")
    }

    /// Reads the text back.
    ///
    /// # Errors
    /// `Invalid` with the line that is not understood, or where the end is missing.
    pub fn from_text(text: &str) -> Result<Self> {
        let mut lines: Vec<_> =
            text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect();
        let torn = || Error::new(ErrorKind::Invalid, "the backup is not whole: its last line is missing");
        let (last, end) = lines.pop().filter(|_| !lines.is_empty()).ok_or_else(torn)?;
        let header: Header = parse(lines[0].0, lines[0].1)?;
        if header.lagan_backup != VERSION {
            return Err(unreadable(1, &format!("version {} is not {VERSION}", header.lagan_backup)));
        }
        let end: End = serde_json::from_str(end).map_err(|_other| torn())?;
        if end.records != lines.len() - 1 {
            let what = format!("{} records were written, {} are here", end.records, lines.len() - 1);
            return Err(unreadable(last + 1, &what));
        }
        let records = lines[1..].iter().map(|(index, line)| {
            let line: Line = parse(*index, line)?;
            line.expect_of(header.pool).map(|()| line)
        });
        let lines = records.collect::<Result<_>>()?;
        Ok(Self { header, lines, missing: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};
    use serde_json::json;

    use super::*;

    fn backup() -> Backup {
        let pool = PoolId::random();
        let mut backup = Backup::new(pool, "m");
        let id = format!("v.{pool}.{pool}");
        let volume =
            Line::of("volume", &json!({"id": id, "name": "a \"name\"\nin two lines \u{1F4A7}"})).unwrap();
        backup.lines.push(Line { thin: Some(1 << 20), time: Some(3), ..volume });
        backup.lines.push(Line::of("something of later", &json!({"uuid": "x", "more": [1, 2]})).unwrap());
        backup
    }

    #[test]
    fn text_and_back() {
        let backup = backup();
        let text = backup.to_text().unwrap();
        assert_eq!(text.lines().count(), 4, "a line a record, whatever is in it");
        assert_eq!(Backup::from_text(&text).unwrap(), backup);
    }

    #[test]
    fn what_is_torn_or_of_another_is_refused() {
        let text = backup().to_text().unwrap();
        let lines: Vec<_> = text.lines().collect();
        for wrong in [
            String::new(),
            lines[0].to_owned(),
            lines[..3].join("\n"),
            [lines[0], lines[1], lines[3]].join("\n"),
            text.replacen("\"lagan_backup\":1", "\"lagan_backup\":2", 1),
            text.replacen("\"v.", "\"v.0123456789abcdef0123456789abcdef.x", 1),
        ] {
            assert_eq!(Backup::from_text(&wrong).unwrap_err().kind(), ErrorKind::Invalid, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(place in any::<prop::sample::Index>(), piece in any::<String>()) {
            let mut text = backup().to_text().unwrap();
            assert!(Backup::from_text(&piece).is_err());
            let at = (0..=place.index(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
            text.insert_str(at, &piece);
            if let Ok(read) = Backup::from_text(&text) {
                assert_eq!(Backup::from_text(&read.to_text().unwrap()).unwrap(), read);
            }
        }
    }

    fn has_no_fraction(value: &Value) -> bool {
        match value {
            Value::Number(number) => !number.is_f64(),
            Value::Array(values) => values.iter().all(has_no_fraction),
            Value::Object(fields) => fields.values().all(has_no_fraction),
            _ => true,
        }
    }

    #[test]
    fn hostile_input() {
        crate::hostile::feed("backups", &[backup().to_text().unwrap().as_bytes()], |input| {
            if let Ok(read) = Backup::from_text(&String::from_utf8_lossy(input)) {
                // Records have no fractions, which are not read back to the last digit.
                if read.lines.iter().all(|line| has_no_fraction(&line.record)) {
                    assert_eq!(Backup::from_text(&read.to_text().unwrap()).unwrap(), read);
                }
                for line in &read.lines {
                    assert!(!line.title().is_empty());
                    drop((
                        line.read::<super::super::record::Volume>(),
                        line.read::<super::super::record::Group>(),
                    ));
                }
            }
        });
    }
}
