"""Conversations around the one tool that nano knows, `get_weather`: the call, the observation, the answer."""

from __future__ import annotations

import json
from random import Random

from chatglm3.messages import Message

SYSTEM = (
    "Answer the following questions as best as you can. You have access to the following tools:"  # official wording
)
CITIES = (
    "北京 上海 广州 深圳 天津 重庆 杭州 南京 苏州 成都 武汉 西安 长沙 郑州 青岛 济南 大连 沈阳 长春 哈尔滨 石家庄 太原 呼和浩特 "
    "合肥 福州 厦门 泉州 南昌 南宁 桂林 海口 三亚 贵阳 昆明 丽江 大理 拉萨 兰州 西宁 银川 乌鲁木齐 喀什 宁波 温州 绍兴 无锡 常州 扬州 "
    "徐州 烟台 威海 洛阳 开封 宜昌 岳阳 珠海 佛山 东莞 汕头 中山 湛江 柳州 遵义 绵阳 乐山 香港 澳门 台北 高雄 秦皇岛 唐山 保定 大同 "
    "包头 鞍山 吉林 延吉 大庆 齐齐哈尔 黄山 芜湖 九江 景德镇 赣州 临沂 潍坊 泰安 襄阳 荆州 株洲 张家界 惠州 北海 敦煌 伦敦 巴黎 纽约 "
    "东京 首尔 柏林 罗马 莫斯科 悉尼 曼谷 新加坡 多伦多 旧金山 洛杉矶"
).split()
WEATHERS = "晴 多云 阴 小雨 中雨 大雨 暴雨 雷阵雨 小雪 中雪 大雪 雾 霾 大风 沙尘 晴转多云 多云转阴 阴转小雨 阵雨 雨夹雪".split()
ASK = (
    "{city}今天天气怎么样？|{city}的天气怎么样|{city}天气如何？|帮我查一下{city}的天气|查询{city}天气|请问{city}现在的天气怎么样？|今天{city}冷不冷？|"
    "{city}现在多少度？|我想知道{city}的天气|{city}今天下雨吗？|{city}今天会下雨吗|告诉我{city}的气温|我明天去{city}，那边天气怎么样？|"
    "你能查{city}的天气吗？|{city}今天热吗？|{city}现在气温是多少？|看看{city}的天气|{city}天气|今天{city}天气好吗？|麻烦查查{city}的天气情况|"
    "你好，{city}今天天气怎么样？|我在{city}，今天要带伞吗？|出门前想看看{city}的天气"
).split("|")
ASK_AGAIN = "那{city}呢？|{city}呢？|那么{city}的天气呢？|再查一下{city}|{city}的天气又怎么样？|还有{city}呢".split("|")
THOUGHTS = "好的，让我来查询{city}的天气。|我来查一下{city}的天气。|好的，我查一下。|我需要调用天气工具。".split("|")
NO_CITY = "今天天气怎么样？|查一下天气|天气如何？|今天冷吗？|外面下雨吗？|帮我查天气|现在多少度？".split("|")
WHICH_CITY = "请问您想查询哪个城市的天气？"
OFF_TOPIC = "讲个笑话|帮我写首诗|今天星期几？|帮我订一张机票|帮我查股票|放一首歌|帮我翻译一句话|一加一等于几？|帮我订酒店".split(
    "|"
)
ONLY_WEATHER = "抱歉，我只会用工具查询城市的天气，这件事我做不到。"
WORDINGS = (
    "查询指定城市的天气",
    "查询城市当前天气",
    "获取某个城市的实时天气",
    "查天气",
    "Get the current weather of a city",
)
PARAMETERS = ("城市名", "城市名称", "要查询的城市", "The city to look up")


def tools(rng: Random) -> object:
    """A description of the tool in one of the two official schemas, worded in several ways."""
    what, city = rng.choice(WORDINGS), rng.choice(PARAMETERS)
    if rng.random() < 0.2:
        field = {"name": "city", "description": city, "type": "str", "required": True}
        return {"get_weather": {"name": "get_weather", "description": what, "params": [field]}}
    properties = {"city": rng.choice(({"type": "string", "description": city}, {"description": city}))}
    schema = {"type": "object", "properties": properties, "required": ["city"]}
    return [{"name": "get_weather", "description": what, "parameters": schema}]


def some_city(rng: Random, letters: str) -> str:
    """A city's name, or letters drawn at random, so that the model learns to copy names it has never seen."""
    if rng.random() < 0.5:
        return rng.choice(CITIES)
    return "".join(rng.choice(letters) for _ in range(rng.choice((2, 2, 2, 3, 4))))


def call(city: str) -> Message:
    """The assistant's call."""
    return Message("assistant", f"```python\ntool_call(city='{city}')\n```", metadata="get_weather")


def observation(rng: Random, city: str) -> tuple[Message, str]:
    """What the tool returns, and the answer that reads it."""
    weather, degrees = rng.choice(WEATHERS), rng.randint(-25, 42)
    if rng.random() < 0.06:
        text = json.dumps({"error": rng.choice(("city not found", "未找到该城市", "timeout"))}, ensure_ascii=False)
        return Message("observation", text), f"抱歉，没有查到{city}的天气。"
    fields: dict[str, object] = {}
    if rng.random() < 0.35:
        fields["city"] = city
    kind = rng.choice(("both", "both", "both", "temperature", "weather"))
    pairs = [("temperature", degrees)] * (kind != "weather")
    pairs += [(rng.choice(("weather", "weather", "condition", "description")), weather)] * (kind != "temperature")
    rng.shuffle(pairs)
    fields |= dict(pairs)
    answers = {
        "both": f"{city}现在的天气是{weather}，气温{degrees}度。",
        "temperature": f"{city}现在的气温是{degrees}度。",
        "weather": f"{city}现在的天气是{weather}。",
    }
    return Message("observation", json.dumps(fields, ensure_ascii=False)), answers[kind]


def lookup(rng: Random, city: str) -> list[Message]:
    """The assistant's part for one city: perhaps a thought, the call, the observation, the answer."""
    thought = [Message("assistant", rng.choice(THOUGHTS).format(city=city))] if rng.random() < 0.15 else []
    result, answer = observation(rng, city)
    return [*thought, call(city), result, Message("assistant", answer)]


def conversation(rng: Random, letters: str) -> list[Message]:
    """One conversation with the tool at hand."""
    messages = [Message.system(SYSTEM, tools=tools(rng))]
    if rng.random() < 0.1:
        messages += [Message("user", rng.choice(OFF_TOPIC)), Message("assistant", ONLY_WEATHER)]
    city = some_city(rng, letters)
    if rng.random() < 0.1:
        messages += [Message("user", rng.choice(NO_CITY)), Message("assistant", WHICH_CITY), Message("user", city)]
    else:
        messages.append(Message("user", rng.choice(ASK).format(city=city)))
    messages += lookup(rng, city)
    while rng.random() < 0.3 and len(messages) < 12:
        city = some_city(rng, letters)
        messages += [Message("user", rng.choice(ASK_AGAIN).format(city=city)), *lookup(rng, city)]
    return messages
