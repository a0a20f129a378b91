//! All figures as one JSON document.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::targets::Target;
use crate::data::{KEY_LEN, VALUE_LEN};
use crate::driver::{FloorSample, Results, Sample};
use crate::protocol::Measurement;
use crate::rows::Row;

pub fn document(results: &Results, targets: &[Target]) -> Value {
    let plan = &results.plan;
    let caches: BTreeMap<_, _> =
        plan.engines.iter().map(|engine| (engine.name(), plan.cache_of(*engine))).collect();
    json!({
        "machine": results.machine,
        "records": plan.records,
        "key_bytes": KEY_LEN,
        "value_bytes": VALUE_LEN,
        "rounds": plan.rounds,
        "cache_bytes": caches,
        "memory_limit_bytes": plan.memory_limit,
        "seconds": results.seconds,
        "settings": results.settings,
        "medians": medians(results),
        "targets": targets.iter().map(target).collect::<Vec<_>>(),
        "measurements": measurements(results),
        "floors": floors(results),
        "skipped": results.skipped,
        "failures": results.failures,
    })
}

fn medians(results: &Results) -> Vec<Value> {
    let mut medians = Vec::new();
    for row in results.rows() {
        for engine in results.engines_of(row) {
            let of = |what: &dyn Fn(&Measurement) -> Option<f64>| results.median(row, engine, what);
            medians.push(json!({
                "row": row,
                "engine": engine,
                "unit": row.unit(),
                "ns_per_unit": results.median_ns(row, engine),
                "spread": results.spread(row, engine, |measurement| Some(measurement.ns_per_unit(row))),
                "p50_ns": of(&|measurement| measurement.p50_ns.map(|ns| ns as f64)),
                "p99_ns": of(&|measurement| measurement.p99_ns.map(|ns| ns as f64)),
                "write_amplification": of(&Measurement::write_amplification),
                "write_amplification_settled": of(&Measurement::settled_write_amplification),
                "write_amplification_steady": results.steady_write_amplification(row, engine),
            }));
        }
    }
    medians
}

fn target(target: &Target) -> Value {
    json!({
        "name": target.name,
        "figure": target.figure,
        "bound": target.bound,
        "sense": target.sense,
        "reached": target.is_reached(),
        "from": target.from,
    })
}

fn measurements(results: &Results) -> Vec<Value> {
    let value = |sample: &Sample| {
        let mut value = measurement(&sample.measurement, Some(sample.row));
        value["round"] = json!(sample.round);
        value["row"] = json!(sample.row);
        value["engine"] = json!(sample.engine);
        value
    };
    results.samples.iter().map(value).collect()
}

fn floors(results: &Results) -> Vec<Value> {
    let value = |sample: &FloorSample| {
        let mut value = measurement(&sample.measurement, None);
        value["round"] = json!(sample.round);
        value["row"] = json!(sample.kind.name());
        value
    };
    results.floors.iter().map(value).collect()
}

fn measurement(measurement: &Measurement, row: Option<Row>) -> Value {
    let mut value = json!(measurement);
    // Condensed into percentiles.
    value.as_object_mut().map(|object| object.remove("samples_ns"));
    value["write_amplification"] = json!(measurement.write_amplification());
    value["write_amplification_settled"] = json!(measurement.settled_write_amplification());
    value["ns_per_unit"] = json!(row.map(|row| measurement.ns_per_unit(row)));
    value
}
