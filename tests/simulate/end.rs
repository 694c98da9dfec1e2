//! The end of a schedule: no fault any more, everything is retried to success, and what there is is what must be.

use crate::world::World;

impl World {
    pub(crate) fn end(&mut self) {
        self.calm();
    }
}
