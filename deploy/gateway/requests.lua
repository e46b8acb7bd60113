-- What a request must be like before a tritonserver sees it. Envoy runs envoy_on_request once a request.
-- configuration.py puts a table LIMITS and a table PUBLIC_MODELS in front of this text.

local find, byte, sub = string.find, string.byte, string.sub

-- A header may be given several times: Envoy then joins the values, and the joined one matches nothing below.
local function is_identity(encoding)
  return encoding == nil or encoding == "" or encoding == "identity"
end

local function is_public(name)
  if PUBLIC_MODELS[name] then
    return true
  end
  if not find(name, "^%w[%w_-]*$") then
    return false
  end
  for public in pairs(PUBLIC_MODELS) do  -- NAME_caption
    if #name > #public + 1 and sub(name, -#public - 1) == "_" .. public then
      return true
    end
  end
  return false
end

-- One pass over JSON; strings, where pictures are, are skipped by a search for their closing quote.
local function json_fault(text)
  local depth, tokens, at = 0, 0, 1
  while true do
    local found = find(text, '["%[%]{}]', at)
    if not found then
      return nil
    end
    tokens = tokens + 1
    local character = byte(text, found)
    if character == 34 then -- "
      local close = found
      repeat
        close = find(text, '"', close + 1, true)
        if not close then
          return "the JSON holds a string that does not end"
        end
        tokens = tokens + 1
        local before = close - 1
        while byte(text, before) == 92 do -- \
          before = before - 1
        end
      until (close - before) % 2 == 1 or tokens > LIMITS.json_tokens
      found = close
    elseif character == 91 or character == 123 then -- [ {
      depth = depth + 1
      if depth > LIMITS.json_depth then
        return "the JSON is nested more than " .. LIMITS.json_depth .. " levels deep"
      end
    else
      depth = depth - 1
    end
    if tokens > LIMITS.json_tokens then
      return "the JSON holds more than " .. LIMITS.json_tokens .. " quotes and brackets"
    end
    at = found + 1
  end
end

-- A protobuf varint of up to ten bytes: its value and the position after it, or nil.
local function varint(window, at)
  local value, scale = 0, 1
  for index = at, at + 9 do
    local one = byte(window, index)
    if not one then
      return nil
    end
    value = value + one % 128 * scale
    if one < 128 then
      return value, index + 1
    end
    scale = scale * 128
  end
  return nil
end

-- The fields of one gRPC message, of which only the model's name (field 1 of each of the requests) is looked at.
local function grpc_fault(body, must_name)
  local length = body:length()
  if length < 5 then
    return "a gRPC message is missing"
  end
  local head = body:getBytes(0, 5)
  if byte(head, 1) ~= 0 then
    return "a compressed gRPC message: send it as it is"
  end
  if ((byte(head, 2) * 256 + byte(head, 3)) * 256 + byte(head, 4)) * 256 + byte(head, 5) ~= length - 5 then
    return "not exactly one gRPC message"
  end
  local at, fields, named = 5, 0, false
  while at < length do
    fields = fields + 1
    if fields > LIMITS.grpc_fields then
      return "a gRPC message of more than " .. LIMITS.grpc_fields .. " fields"
    end
    local window = body:getBytes(at, math.min(20, length - at))
    local tag, after = varint(window, 1)
    if not tag then
      return "not a gRPC message of this service"
    end
    local kind, field = tag % 8, math.floor(tag / 8)
    local size
    if kind == 0 then
      local _, past = varint(window, after)
      size = past and past - after
    elseif kind == 1 then
      size = 8
    elseif kind == 5 then
      size = 4
    elseif kind == 2 then
      size, after = varint(window, after)
    end
    if not size or at + after - 1 + size > length then
      return "not a gRPC message of this service"
    end
    local start = at + after - 1
    if field == 1 then
      if kind ~= 2 or size > LIMITS.name_bytes or not is_public(body:getBytes(start, size)) then
        return "not a public model", 404
      end
      named = true
    end
    at = start + size
  end
  if must_name and not named then
    return "the model's name is missing"
  end
  return nil
end

local GRPC_STATUS = { [400] = "3", [404] = "5", [413] = "8", [415] = "12" }

-- A gRPC client reads grpc-status, everybody else :status.
local function refuse(handle, is_grpc, status, message)
  local headers = { [":status"] = tostring(status), ["content-type"] = "application/json" }
  if is_grpc then
    headers["content-type"] = "application/grpc"
    headers["grpc-status"], headers["grpc-message"] = GRPC_STATUS[status], message
    handle:respond(headers, "")
  else
    handle:respond(headers, '{"error":"' .. message .. '"}\n')
  end
end

local function check(handle)
  local headers = handle:headers() -- not to be used any more once the body has been waited for
  local path = headers:get(":path") or ""
  local method = string.match(path, "^/inference%.GRPCInferenceService/(%w+)$")
  local is_grpc = sub(headers:get("content-type") or "", 1, 16) == "application/grpc"
  if headers:get("triton_grpc_error") then
    return refuse(handle, is_grpc, 400, "the header triton_grpc_error is not taken")
  end
  if not is_identity(headers:get("content-encoding")) then
    return refuse(handle, is_grpc, 415, "compressed bodies are not taken: send it as it is")
  end
  if not is_identity(headers:get("grpc-encoding")) then
    return refuse(handle, is_grpc, 415, "compressed messages are not taken: send it as it is")
  end
  local announced = headers:get("content-length")
  if announced and (tonumber(announced) or math.huge) > LIMITS.body_bytes then
    return refuse(handle, is_grpc, 413, "a request of more than " .. LIMITS.body_bytes .. " bytes")
  end
  if is_grpc ~= (method ~= nil or find(path, "^/grpc%.health%.v1%.Health/") ~= nil) then
    return refuse(handle, is_grpc, 404, "no such method for this content type")
  end

  if method == "ModelInfer" or method == "ModelReady" or method == "ModelMetadata" then
    local body = handle:body()
    local fault, status = "a gRPC message is missing", 400
    if body then
      fault, status = grpc_fault(body, true)
    end
    if fault then
      refuse(handle, true, status or 400, fault)
    end
  elseif headers:get(":method") == "POST" and not is_grpc then
    local header_length = headers:get("inference-header-content-length")
    local body = handle:body()
    local length = body and body:length() or 0
    local json = length
    if header_length then
      -- Binary tensors follow the JSON. Triton reads all of it as JSON for /generate.
      json = find(header_length, "^%d+$") and #header_length < 10 and tonumber(header_length) or 0
      if json == 0 or json > length or not find(path, "/infer$") then
        return refuse(handle, false, 400, "Inference-Header-Content-Length does not fit the request")
      end
    end
    local text = json > 0 and body:getBytes(0, json) or ""
    local fault = json_fault(text)
    if json > LIMITS.collect_bytes then
      text = nil
      collectgarbage()
    end
    if fault then
      refuse(handle, false, 400, fault)
    end
  end
end

-- Envoy lets a request pass whose script fails.
function envoy_on_request(handle)
  local done, fault = pcall(check, handle)
  if not done then
    handle:logErr(tostring(fault))
    refuse(handle, false, 400, "the request cannot be checked")
  end
end
