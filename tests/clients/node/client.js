// What a user of another language does with stubs made from our protos: a job on stdin, answers on stdout.
// The job is an object: `address`, `model`, `features` (an object) and `user_id`.

import { text } from "node:stream/consumers";
import { createRegistry, toJson } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { BadRequestSchema, ErrorInfoSchema, file_google_rpc_error_details } from "./gen/google/rpc/error_details_pb.js";
import { PredictionSchema } from "./gen/interlock/router/v1/prediction_pb.js";
import { PredictRowsResponseSchema, RouterService } from "./gen/interlock/router/v1/router_service_pb.js";

const TIMEOUT_MS = 10_000;
const DETAILS = createRegistry(file_google_rpc_error_details);

function feature(value) {
  if (typeof value === "string") {
    return { kind: { case: "stringValue", value } };
  }
  return Number.isInteger(value)
    ? { kind: { case: "int64Value", value: BigInt(value) } }
    : { kind: { case: "doubleValue", value } };
}

function features(values) {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, feature(value)]));
}

function plain(schema, message) {
  return toJson(schema, message, { alwaysEmitImplicit: true, useProtoFieldName: true, registry: DETAILS });
}

async function refusal(call) {
  try {
    return { answered: String(await call) };
  } catch (reason) {
    const error = ConnectError.from(reason);
    const [info] = error.findDetails(ErrorInfoSchema);
    const [request] = error.findDetails(BadRequestSchema);
    return {
      code: Code[error.code],
      message: error.rawMessage,
      reason: info?.reason,
      domain: info?.domain,
      fields: request?.fieldViolations.map((violation) => violation.field),
    };
  }
}

const job = JSON.parse(await text(process.stdin));
const transport = createGrpcTransport({ baseUrl: `http://${job.address}`, defaultTimeoutMs: TIMEOUT_MS });
const router = createClient(RouterService, transport);
const asked = { model: job.model, features: features(job.features), userId: job.user_id };
const misspelt = { ...asked, features: { ...asked.features, no_such_feature: feature(1) } };

const found = {
  predict: plain(PredictionSchema, (await router.predict(asked)).prediction),
  predict_rows: plain(PredictRowsResponseSchema, await router.predictRows({ model: job.model, rows: [asked, {}] }))
    .results,
  unknown_model: await refusal(router.predict({ ...asked, model: "no-such-model" })),
  unknown_feature: await refusal(router.predict(misspelt)),
};
process.stdout.write(JSON.stringify(found));
