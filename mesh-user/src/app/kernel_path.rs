//! What the agent does for connections that the kernel sends to endpoints by itself: reads what
//! became of them, ejects, and takes ejected endpoints out of the kernel's split.

use crate::{
    clock::MonoNanos,
    kernel::{Kernel, KernelError},
    model::kernel_table::KernelTables,
    policy::{Snapshot, VersionIx, ejection::Change, snapshot::EndpointIx},
    telemetry::{KernelCounts, Telemetry},
};

/// The tables that stand in the kernel.
#[derive(Debug, Default)]
pub(super) struct KernelPath {
    tables: KernelTables,
}

impl KernelPath {
    /// The tables that were written last.
    pub(super) fn tables(&self) -> &KernelTables {
        &self.tables
    }

    /// Notes tables that were written.
    pub(super) fn stands(&mut self, tables: KernelTables) {
        self.tables = tables;
    }

    /// Counts and judges what the kernel saw since the last call. What it changed.
    pub(super) fn feed_back(
        &self,
        kernel: &mut Kernel,
        snapshot: &Snapshot,
        telemetry: &Telemetry,
        now: MonoNanos,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        for counted in kernel.endpoint_counts() {
            let at = counted.backend as usize;
            let Some(table) = self.tables.ports.get(counted.table as usize) else {
                continue;
            };
            let (Some(backend), Some(endpoint)) = (table.backends.get(at), table.endpoints.get(at))
            else {
                continue;
            };
            let Some(version) = table.version_of(backend).map(VersionIx) else {
                continue;
            };
            let delta = counted.delta;
            telemetry.kernel_counted(
                snapshot,
                version,
                &KernelCounts {
                    opened: delta.opened,
                    established: delta.established,
                    failed: delta.failed,
                    abandoned: delta.abandoned,
                    closed: delta.closed,
                    sent: delta.bytes_out,
                    received: delta.bytes_in,
                },
            );
            if delta.established > 0 || delta.failed > 0 {
                let ends = (delta.established, delta.failed);
                changes.extend(snapshot.record_kernel(version, EndpointIx(*endpoint), ends, now));
            }
        }
        changes
    }

    /// Writes the split anew when an endpoint has left the rotation or come back.
    ///
    /// # Errors
    /// The kernel took no table; the next call tries again.
    pub(super) fn rotate(
        &mut self,
        kernel: &mut Kernel,
        snapshot: &Snapshot,
    ) -> Result<(), KernelError> {
        let Some(tables) = snapshot.kernel_tables_now(&self.tables) else {
            return Ok(());
        };
        kernel.apply(&tables)?;
        self.stands(tables);
        Ok(())
    }
}
