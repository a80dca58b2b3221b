//! What one instance may hold: memory per function, tables and instances as the allocator's slots have room for.

use wasmtime::ResourceLimiter;

/// Core instances in one component: languages with shared libraries bring many.
pub(super) const MAX_CORE_INSTANCES: u32 = 100;
/// Tables in one component.
pub(super) const MAX_TABLES: u32 = 20;
/// Elements of one table.
pub(super) const MAX_TABLE_ELEMENTS: usize = 50_000;
/// Memories in one component: its own, and rarely one of an adapter or library.
pub(super) const MAX_MEMORIES: u32 = 4;

/// Counts the bytes of all memories of one instance.
pub(super) struct Limiter {
    limit: usize,
    used: usize,
    refused: Option<usize>,
}

impl Limiter {
    /// For an instance that may hold `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            used: 0,
            refused: None,
        }
    }

    /// Forgets an earlier refusal: a new attempt begins.
    pub(super) fn reset(&mut self) {
        self.refused = None;
    }

    /// What to tell of a refusal in this attempt: a guest that trapped after one most likely did so for it.
    pub(super) fn refusal(&self) -> Option<String> {
        let wanted = self.refused?;
        Some(format!(
            "the memory limit of {} bytes was reached (the handler asked for {wanted}): \
             raise `memory` of the function in pelton.toml, or hold less at once",
            self.limit
        ))
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.used.saturating_add(desired.saturating_sub(current));
        if total > self.limit {
            self.refused = Some(total);
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.used = total;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= maximum.unwrap_or(usize::MAX).min(MAX_TABLE_ELEMENTS))
    }

    fn instances(&self) -> usize {
        MAX_CORE_INSTANCES as usize
    }

    fn tables(&self) -> usize {
        MAX_TABLES as usize
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES as usize
    }
}
