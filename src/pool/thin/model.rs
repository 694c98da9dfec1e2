//! A thin pool in a model of device-mapper: the same adapter over another floor, so that it can be tested where there is no
//! device-mapper, and against what the real one does only when it is ill.

use std::sync::Arc;

use super::{
    below,
    header::Header,
    place::{Device, Foreign, Found},
    slots::Slots,
};
use crate::{
    error::{Doing, Error, ErrorKind, Result},
    id::PoolId,
    sys::{
        dm::{Mapper, fake::FakeMapper},
        fate::Fate,
    },
};

/// Names of its devices.
const RECORDS: &str = "model-records";
const POOL: &str = "model-pool";

/// Such a pool. Clones share it.
#[derive(Clone, Debug)]
pub struct Model {
    mapper: FakeMapper,
}

impl PartialEq for Model {
    fn eq(&self, other: &Self) -> bool {
        self.mapper.is(&other.mapper)
    }
}

impl Eq for Model {}

impl Model {
    /// A new pool in a model of device-mapper.
    ///
    /// # Errors
    /// Those of the model.
    pub fn new(mapper: FakeMapper, machine: &str) -> Result<Self> {
        let what = || "make a model of a thin pool";
        mapper.make_records(RECORDS).and_then(|()| mapper.make_pool(POOL)).doing(what)?;
        let model = Self { mapper };
        let found = model.find(&model.mapper())?;
        below::create(&model.mapper(), POOL, below::FIRST)?;
        Slots::format(&found.records.open()?, &Header::new(machine, None))?;
        Ok(model)
    }

    /// The same pool, as a process has it that has a fate.
    #[must_use]
    pub fn under(&self, fate: Arc<dyn Fate>) -> Self {
        Self { mapper: self.mapper.under(fate) }
    }

    /// Cuts the power, as [`FakeMapper::power_cut`], and starts the pool again.
    ///
    /// # Errors
    /// Those of the model.
    pub fn power_cut(&self, choose: impl FnMut(usize) -> usize) -> Result<()> {
        self.mapper.power_cut(RECORDS, POOL, choose).doing(|| "cut the power of a model")
    }

    pub(super) fn mapper(&self) -> Mapper {
        self.mapper.clone().into()
    }

    pub(super) fn find(&self, mapper: &Mapper) -> Result<Found> {
        let look = |name: &str| {
            let missing = || Error::new(ErrorKind::Unavailable, format!("there is no device {name}"));
            mapper.info(name).doing(|| format!("look for {name}"))?.ok_or_else(missing)
        };
        let (records, pool) = (look(RECORDS)?, look(POOL)?);
        let what = "the records of a model".to_owned();
        Ok(Found {
            records: Device { mapper: mapper.clone(), name: records.name, number: records.number, what },
            below: Ok((pool.name, pool.number)),
            foreign: Foreign::default(),
            beside: Vec::new(),
            parts: Vec::new(),
        })
    }

    /// The identity of the pool.
    ///
    /// # Errors
    /// Where it has lost its records.
    pub fn id(&self) -> Result<PoolId> {
        Ok(self.find(&self.mapper())?.header()?.id)
    }
}
