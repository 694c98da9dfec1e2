//! How a thin pool is run for tests of it over a model of device-mapper.

use std::time::Duration;

use lagan::pool::thin::{Place, Settings};

/// Without templates: nothing is there but what was asked for.
pub(crate) fn thin_settings(place: Place) -> Settings {
    Settings {
        place,
        machine: "machine".into(),
        reserve_percent: 5,
        overcommit_percent: 1000,
        freeze_limit: Duration::from_secs(5),
        templates: 0,
        extend: None,
    }
}
