//! What a driver over modelled pools is put together of.

use std::sync::Arc;

use async_trait::async_trait;
use lagan::{
    engine,
    error::Result,
    id::{PoolId, VolumeId},
    node::Node,
    pool::{
        Pool,
        fake::{FakeDisk, FakePool},
        set::Opener,
    },
    sys::fake::FakeKernel,
};

/// Opens the pool on a modelled disk.
pub(crate) struct FakeOpener {
    pub(crate) disk: FakeDisk,
    pub(crate) kernel: FakeKernel,
}

#[async_trait]
impl Opener for FakeOpener {
    async fn open(&self) -> Result<Arc<dyn Pool>> {
        Ok(Arc::new(FakePool::new(self.disk.clone(), self.kernel.clone())))
    }

    fn expected(&self) -> Option<PoolId> {
        None
    }
}

/// The node of the same host is asked who uses a volume.
pub(crate) struct LocalUses(pub(crate) Node);

#[async_trait]
impl engine::Uses for LocalUses {
    async fn release(&self, id: VolumeId) -> Result<()> {
        self.0.release(id).await
    }
}
