//! Hostile input: numbers, text and bytes drawn from a seed, and a feeder that gives a parser its corpus and what grows
//! from it. What a parser did not bear is written to the corpus, where every later run begins.

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Longer than this no parser may take for what is at most some hundred KiB long.
const SLOW: Duration = Duration::from_secs(5);

/// What has broken somebody's parser before: paths, options, numbers, letters that are more than one byte or none.
const FRAGMENTS: &[&str] = &[
    "",
    ".",
    "..",
    "/",
    "//",
    "../",
    "../../../../etc/passwd",
    "/..",
    "/./",
    "%2f",
    "%2e%2e%2f",
    "\0",
    "a\0b",
    "\u{1}",
    "\u{7f}",
    "\u{85}",
    "\u{feff}",
    "\u{202e}",
    "\u{1F4A7}",
    "Datenträger",
    "\u{0}\u{10ffff}",
    "-",
    "-rf",
    "--",
    "--config",
    "--config=devices{}",
    "@tag",
    ",",
    "rw,suid",
    "suid",
    "dev",
    "exec",
    "noatime",
    "context=a:b:c:s0",
    "context=\"a,b\"",
    "logdev=/dev/sda",
    "journal_path=/dev/sda",
    "=",
    "=,",
    ";reboot",
    "$(reboot)",
    "`reboot`",
    "|",
    "\n",
    "\r\n",
    "\t",
    " ",
    "http://169.254.169.254/latest",
    "file:///etc/shadow",
    "unix:///run/x.sock",
    "0",
    "-1",
    "00",
    "0x10",
    "1e309",
    "NaN",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "16EiB",
    "null",
    "true",
    "{}",
    "[]",
    "[[[[[[[[[[[[[[[[",
    "{\"a\":",
    "\\",
    "\\040",
    "\\777",
    "\"",
    "'",
    "%s%n",
    "v.",
    "s.",
    "g.",
    "/etc",
    "/proc/1/root",
    "/proc/self/fd/0",
    "/dev/sda",
    "/t",
    "/t/../etc",
    "lagan1 ",
    "lagan1 00000000 {}",
];

/// Lengths at which limits lie, and some beyond.
const LENGTHS: &[usize] =
    &[1, 31, 32, 63, 64, 67, 107, 108, 127, 128, 129, 255, 256, 1000, 4095, 4096, 4097, 65536];

/// Numbers at which counting ends.
const NUMBERS: &[i64] = &[
    0,
    1,
    -1,
    2,
    511,
    512,
    4095,
    4096,
    4097,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    1 << 32,
    -(1 << 31),
    1 << 40,
    1 << 62,
    i64::MAX - 4095,
    i64::MAX - 1,
    i64::MAX,
    i64::MIN,
    i64::MIN + 1,
];

/// A sequence of numbers that its seed decides (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..end`; `end` is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end as u64)).unwrap()
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub(crate) fn number(&mut self) -> i64 {
        match self.below(4) {
            0 => self.next().cast_signed(),
            1 => 1 << self.below(63),
            _ => self.pick(NUMBERS),
        }
    }

    /// Text that nobody should send.
    pub(crate) fn text(&mut self) -> String {
        match self.below(16) {
            0 => self
                .pick(&["x", "\u{fc}", "\0", "/", "../", "\"", "\\", "\u{1F4A7}"])
                .repeat(self.pick(LENGTHS)),
            1..4 => (0..self.below(4)).map(|_| self.pick(FRAGMENTS)).collect(),
            4 => (0..self.below(40)).map(|_| char::from(u8::try_from(self.below(128)).unwrap())).collect(),
            _ => self.pick(FRAGMENTS).to_owned(),
        }
    }

    /// Changes bytes at a few places, or takes a piece of others in.
    pub(crate) fn spoil(&mut self, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
        for _change in 0..=self.below(4) {
            let (at, end) = (self.below(bytes.len() + 1), bytes.len());
            match self.below(10) {
                0 if at < end => bytes[at] ^= 1 << self.below(8),
                1 if at < end => bytes[at] = self.pick(&[0, 1, 0x7f, 0x80, 0xff, b' ', b'"', b'\\', b'\n']),
                2 => bytes.truncate(at),
                3 => drop(bytes.splice(at..at, self.text().into_bytes())),
                4 => {
                    let length = self.below(64).min(end - at);
                    let piece = bytes[at..at + length].to_vec();
                    let to = self.below(bytes.len() + 1);
                    drop(bytes.splice(to..to, piece));
                }
                5 => drop(bytes.drain(at..(at + self.below(16)).min(end))),
                6 | 8 => {
                    // The next number in the text.
                    let at = (at..end).find(|&at| bytes[at].is_ascii_digit()).unwrap_or(at);
                    let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                    let number = self.number();
                    let number =
                        if self.chance(50) { number.to_string() } else { number.cast_unsigned().to_string() };
                    drop(bytes.splice(at..at + digits, number.into_bytes()));
                }
                7 if end >= 8 => {
                    let (at, width) = (at.min(end - 8), self.pick(&[2, 4, 8]));
                    let number = self.number();
                    let number = if self.chance(50) { number.to_le_bytes() } else { number.to_be_bytes() };
                    bytes[at..at + width].copy_from_slice(&number[..width]);
                }
                _ if !others.is_empty() => {
                    let other = &others[self.below(others.len())];
                    let from = self.below(other.len() + 1);
                    let piece = other[from..(from + self.below(256)).min(other.len())].to_vec();
                    drop(bytes.splice(at..at, piece));
                }
                _ => {}
            }
        }
    }
}

/// What every run begins with, and what is added to it.
pub(crate) fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name)
}

/// The files of a corpus, in the order of their names.
pub(crate) fn kept(name: &str) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::read_dir(corpus(name)) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Adds to a corpus; where.
pub(crate) fn keep(name: &str, input: &[u8]) -> PathBuf {
    let sum = input
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let path = corpus(name).join(format!("found-{sum:016x}"));
    fs::create_dir_all(corpus(name)).unwrap();
    fs::write(&path, input).unwrap();
    path
}

/// A number from the environment.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Feeds a parser with its corpus, with `samples`, and with what grows from both: `FUZZ_INPUTS` inputs, from `FUZZ_SEED`,
/// as many of them as there is time for in `FUZZ_SECONDS`.
///
/// # Panics
/// Where it panicked or was slow; the input is in the corpus then.
pub(crate) fn feed(name: &str, samples: &[&[u8]], parser: impl Fn(&[u8])) {
    let mut seeds = kept(name);
    seeds.extend(samples.iter().map(|sample| sample.to_vec()));
    let (count, mut random) = (setting("FUZZ_INPUTS", 5000), Random::new(setting("FUZZ_SEED", 1)));
    let (begun, mut slowest, mut fed) = (Instant::now(), Duration::ZERO, 0);
    let enough = Duration::from_secs(setting("FUZZ_SECONDS", 1));
    for number in 0..seeds.len() as u64 + count {
        if number >= seeds.len() as u64 && begun.elapsed() > enough {
            break;
        }
        fed += 1;
        let input = match usize::try_from(number).ok().and_then(|number| seeds.get(number)) {
            Some(seed) => seed.clone(),
            None => grown(&mut random, &seeds),
        };
        let begun = Instant::now();
        let borne = catch_unwind(AssertUnwindSafe(|| parser(&input)));
        let took = begun.elapsed();
        slowest = slowest.max(took);
        assert!(borne.is_ok(), "{name} panicked: see {}", keep(name, &input).display());
        assert!(took < SLOW, "{name} took {took:?}: see {}", keep(name, &input).display());
    }
    println!("{name}: {fed} inputs, 0 panics, slowest {slowest:.1?}, {:.1?} in all", begun.elapsed());
}

fn grown(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut input = match random.below(12) {
        0 => random.text().into_bytes(),
        1 => (0..random.below(512)).map(|_| u8::try_from(random.below(256)).unwrap()).collect(),
        _ if seeds.is_empty() => Vec::new(),
        _ => seeds[random.below(seeds.len())].clone(),
    };
    random.spoil(&mut input, seeds);
    input
}
