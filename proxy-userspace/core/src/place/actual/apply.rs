//! Keeps the mirror in step with the kernel: each applied write, and the indexes that depend on it.

use std::sync::Arc;

use proxy_common::service::Service;

use super::Actual;
use crate::contents::Frontend;
use crate::place::elements::{EndpointAt, Entry, Key, Side, Slot, SlotKey, Write};

impl FromIterator<Entry> for Actual {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        let mut actual = Self::default();
        entries.into_iter().for_each(|entry| actual.put(entry));
        actual
    }
}

impl Actual {
    /// Records a write that the kernel has taken.
    pub fn apply(&mut self, write: Write) {
        match write {
            Write::Put(entry) => self.put(entry),
            Write::Delete(key) => self.delete(key),
        }
    }

    /// Reserves ids up to `id`, which something outside the Service maps still refers to.
    pub fn reserve_id(&mut self, id: u32) {
        self.next_id = after(self.next_id, id);
    }

    fn put(&mut self, entry: Entry) {
        match entry {
            Entry::Service(frontend, service) => self.put_service(frontend, service),
            Entry::Backend(key, slot) => self.put_backend(key, slot),
            Entry::Endpoint(endpoint, slot) => self.put_endpoint(endpoint, slot),
            Entry::Maglev(key, chunk) => {
                self.record_generation((Side::from(&key), key.generation));
                self.maglev.insert(key, *chunk);
            }
            Entry::Source(id, range) => _ = self.sources.insert((id, range)),
            Entry::Range(range, kind) => _ = self.ranges.insert(range, kind),
            Entry::Address(addr, flags) => drop(self.addresses.insert(addr, flags)),
            Entry::Pod(addr, pod) => {
                self.moved.remove(&addr);
                self.pods.insert(addr, pod);
            }
            Entry::Device(index, device) => drop(self.devices.insert(index, device)),
            Entry::Name(id, name) => self.put_name(id, name),
            Entry::Config(config) => self.config = config,
        }
    }

    fn delete(&mut self, key: Key) {
        match key {
            Key::Service(frontend) => self.delete_service(&frontend),
            Key::Backend(key) => self.delete_backend(key),
            Key::Endpoint(endpoint) => self.delete_endpoint(endpoint),
            Key::Maglev(key) => {
                self.maglev.remove(&key);
                self.forget_generation((Side::from(&key), key.generation));
            }
            Key::Source(id, range) => _ = self.sources.remove(&(id, range)),
            Key::Range(range) => _ = self.ranges.remove(&range),
            Key::Address(addr) => drop(self.addresses.remove(&addr)),
            Key::Pod(addr) => {
                self.moved.remove(&addr);
                self.pods.remove(&addr);
            }
            Key::Device(index) => drop(self.devices.remove(&index)),
            Key::Name(id) => self.delete_name(id),
        }
    }

    fn put_service(&mut self, frontend: Frontend, service: Service) {
        self.delete_service(&frontend);
        let generation = (Side::from(frontend.addr), service.generation);
        *self.users.entry(generation).or_default() += 1;
        self.idle.remove(&generation);
        self.frontends
            .entry(service.id)
            .or_default()
            .insert(frontend);
        self.next_id = after(self.next_id, service.id);
        self.next_generation = after(self.next_generation, service.generation);
        self.services.insert(frontend, service);
    }

    fn delete_service(&mut self, frontend: &Frontend) {
        let Some(old) = self.services.remove(frontend) else {
            return;
        };
        if let Some(frontends) = self.frontends.get_mut(&old.id) {
            frontends.remove(frontend);
            if frontends.is_empty() {
                self.frontends.remove(&old.id);
            }
        }
        let generation = (Side::from(frontend.addr), old.generation);
        let users = self.users.entry(generation).or_default();
        *users = users.saturating_sub(1);
        if *users == 0 {
            self.users.remove(&generation);
            if !self.is_empty(generation) {
                self.idle.insert(generation);
            }
        }
    }

    fn put_backend(&mut self, key: SlotKey, slot: Slot) {
        self.backends.insert(key, slot);
        self.record_generation((key.side, key.generation));
    }

    fn put_endpoint(&mut self, endpoint: EndpointAt, slot: u32) {
        self.endpoints.insert(endpoint, slot);
        self.record_generation((endpoint.addr.ip().into(), endpoint.generation));
    }

    fn record_generation(&mut self, generation: (Side, u32)) {
        self.next_generation = after(self.next_generation, generation.1);
        if !self.users.contains_key(&generation) {
            self.idle.insert(generation);
        }
    }

    fn delete_backend(&mut self, key: SlotKey) {
        self.backends.remove(&key);
        self.forget_generation((key.side, key.generation));
    }

    fn delete_endpoint(&mut self, endpoint: EndpointAt) {
        self.endpoints.remove(&endpoint);
        self.forget_generation((endpoint.addr.ip().into(), endpoint.generation));
    }

    fn forget_generation(&mut self, generation: (Side, u32)) {
        if self.is_empty(generation) {
            self.idle.remove(&generation);
        }
    }

    fn is_empty(&self, (side, generation): (Side, u32)) -> bool {
        self.slots(side, generation).next().is_none()
            && self.endpoints_of(side, generation).next().is_none()
            && self.chunks(side, generation).next().is_none()
    }

    fn put_name(&mut self, id: u32, name: Arc<str>) {
        self.delete_name(id);
        self.next_id = after(self.next_id, id);
        self.ids.insert(name.clone(), id);
        self.names.insert(id, name);
    }

    fn delete_name(&mut self, id: u32) {
        if let Some(name) = self.names.remove(&id)
            && self.ids.get(&name) == Some(&id)
        {
            self.ids.remove(&name);
        }
    }
}

/// Returns the next unused number after `seen`; 0 means that it wrapped around.
fn after(next: u32, seen: u32) -> u32 {
    if seen >= next {
        seen.wrapping_add(1)
    } else {
        next
    }
}
