//! Shared upstream connections.

/// To come.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Connections {}
impl Connections {
    pub(in crate::proxy) fn clear(&self) {}
    pub(in crate::proxy) fn release(&self, _pod_id: u32) {}
    pub(in crate::proxy) fn evict_of_breaker(&self, _breaker: usize) {}
}
